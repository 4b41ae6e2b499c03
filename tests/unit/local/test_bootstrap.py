"""bootstrap.sh, with a Python and a pip that only take notes."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = """#!/bin/sh
case "$*" in
    *flock*) exec {real} "$@" ;;
    --version) echo "Python 3.12.0" ;;
    "-m venv .venv")
        echo venv >> calls
        mkdir -p .venv/bin
        printf '%s\\n' '#!/bin/sh' '[ "$1" = --version ] && echo "pip 1 from $PWD/.venv/lib" && exit' \\
            'sleep 0.3' 'echo "$*" >> calls' > .venv/bin/pip
        chmod +x .venv/bin/pip ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("bootstrap.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    python = tmp_path / "python"
    python.write_text(PYTHON.format(real=shutil.which("python3")))
    python.chmod(0o755)
    return folder


def begin(checkout: Path, python: str | None = None) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHON": python or str(checkout.parent / "python")}
    return subprocess.Popen(
        ["./bootstrap.sh"], cwd=checkout, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def bootstrap(checkout: Path) -> str:
    process = begin(checkout)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    return output


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls").read_text().splitlines()


def test_installs_torch_first_and_the_project_last(checkout: Path) -> None:
    bootstrap(checkout)
    made = calls(checkout)
    assert made[0] == "venv"
    assert made[1].split()[-1].startswith("torch==")
    assert made[2].endswith("-r requirements.lock")
    assert "--no-deps" in made[3] and made[3].endswith("--editable .")
    assert not [line for line in made if "index-url" in line]


def test_a_second_time_does_nothing_and_says_nothing(checkout: Path) -> None:
    bootstrap(checkout)
    before = calls(checkout)
    assert bootstrap(checkout) == ""
    assert calls(checkout) == before


def test_another_lock_file_installs_again_into_the_same_environment(checkout: Path) -> None:
    bootstrap(checkout)
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    bootstrap(checkout)
    assert calls(checkout).count("venv") == 1
    assert len(calls(checkout)) == 7


def test_two_at_once_install_once(checkout: Path) -> None:
    both = [begin(checkout), begin(checkout)]
    outputs = [process.communicate(timeout=30)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(calls(checkout)) == 4
    assert sum("Waiting for another make" in output for output in outputs) == 1


def test_a_killed_install_blocks_nobody(checkout: Path) -> None:
    first = begin(checkout)
    while not (checkout / "calls").exists():
        time.sleep(0.02)
    first.kill()
    first.communicate(timeout=30)
    assert "Installed." in bootstrap(checkout)


def test_a_broken_or_moved_environment_is_made_anew(checkout: Path) -> None:
    bootstrap(checkout)
    moved = checkout.with_name("moved")
    checkout.rename(moved)
    pip = moved / ".venv/bin/pip"
    pip.write_text(pip.read_text().replace("$PWD", str(checkout)))
    bootstrap(moved)
    assert calls(moved).count("venv") == 2


def test_without_a_python_that_is_new_enough_it_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "cat", "cksum", "cut", "dirname"):
        path = shutil.which(tool)
        assert path is not None
        (tools / tool).symlink_to(path)
    done = subprocess.run(
        ["./bootstrap.sh"],
        cwd=checkout,
        env={"PATH": str(tools)},
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "Python 3.11" in done.stderr and "make PYTHON=" in done.stderr
