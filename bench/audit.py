"""Known vulnerabilities of the pinned dependencies, asked of PyPI's advisory service. python bench/audit.py [LOCK]

Exit status: 0 none is known, or the service could not be asked, which is said; 1 some are.
"""

import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
DEADLINE_S = 300
# How pip-audit ends when nobody answers; anything else that goes wrong is a failure.
_UNREACHABLE = (
    "ConnectionError",
    "Connection refused",
    "Max retries exceeded",
    "timed out",
    "ServiceError",
    "HTTPError",
)

_UNKNOWN = "could not be audited"


def main(lock: Path) -> int:
    argv = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        return could_not_ask(f"no answer within {DEADLINE_S} s")
    if done.returncode and not done.stdout.strip() and any(sign in done.stderr for sign in _UNREACHABLE):
        return could_not_ask(done.stderr.strip().splitlines()[-1])
    unknown = [line for line in done.stdout.splitlines() if _UNKNOWN in line]
    if done.returncode:
        print("\n".join(line for line in done.stdout.splitlines() if _UNKNOWN not in line))
        print(done.stderr, end="", file=sys.stderr)
    pins = sum("==" in line for line in lock.read_text().splitlines())
    if unknown:
        print(
            f"audit: nothing could be learned of {len(unknown)} of {pins} packages: the index does not answer for them"
        )
    return done.returncode


def could_not_ask(why: str) -> int:
    print(f"audit: the advisory service could not be asked, so nothing is known: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else LOCK))
