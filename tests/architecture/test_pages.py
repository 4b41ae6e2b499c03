"""Documents name files that exist, metrics that exist, and no file grows past what one can read."""

import re
from pathlib import Path
from types import ModuleType

import fusion_api.metrics
import fusion_orchestrator.metrics
import fusion_worker.metrics
import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("libs", "services", "tests", "bench", "docs", "deploy")
MAX_LINES = 500
MAX_LINES_OF_A_PAGE = 1000  # a reference is looked things up in, not read


def own_files(*suffixes: str) -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return [path for path in found if not {"node_modules", "dist"} & set(path.parts)]


def test_no_file_is_longer_than_one_can_read() -> None:
    files = own_files(".py", ".sql", ".md", ".ts", ".tsx", ".css", ".yaml", ".tpl")
    assert files
    assert [path for path in files if len(path.read_text().splitlines()) > most_lines(path)] == []


def most_lines(path: Path) -> int:
    return MAX_LINES_OF_A_PAGE if path.suffix == ".md" else MAX_LINES


def paths_named_in(text: str) -> set[str]:
    """Every path below one of our folders; `...`, `*` and `<name>` end a path, so a pattern names its folder."""
    return {match.rstrip("./") for match in re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./-]*[\w/]", text)}


@pytest.mark.parametrize(
    "document", ["README.md", "docs/walk.md", "docs/states.md", "docs/operations.md", "docs/scale.md"]
)
def test_paths_in_documents_exist(document: str) -> None:
    named = paths_named_in((ROOT / document).read_text())
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
    assert named or document == "docs/operations.md", f"{document} names no file"


@pytest.mark.parametrize("document", ["docs/walk.md"])
def test_bare_file_names_exist_somewhere(document: str) -> None:
    """`claim.py` without a folder is the name of some file of ours."""
    known = {path.name for path in own_files(".py", ".sql")}
    named = set(re.findall(r"`(\w+\.(?:py|sql))`", (ROOT / document).read_text()))
    assert sorted(named - known) == []


def test_links_between_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    broken = [
        f"{document.relative_to(ROOT)}: {link}"
        for document in documents
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text())
        if not (document.parent / link).exists()
    ]
    assert broken == []


def test_every_line_of_the_readmes_tree_exists() -> None:
    """The tree is the fenced block with a line for libs/: two spaces or more, or a box's lines, end the names."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    trees = [block for block in blocks if re.search(r"^\W*libs/", block, re.MULTILINE)]
    assert trees, "README.md has no tree"
    assert [path for tree in trees for path in tree_paths(tree) if not (ROOT / path).exists()] == []


def tree_paths(tree: str) -> list[str]:
    """Full paths of a tree whose nested lines are indented, with or without lines drawn."""
    paths, parents = [], list[tuple[int, str]]()
    for line in tree.splitlines():
        match = re.match(r"^([\s│├└─]*)([\w.-][\w./-]*)", line)
        if match is None:
            continue
        indent, name = len(match.group(1)), match.group(2)
        while parents and parents[-1][0] >= indent:
            parents.pop()
        full = "/".join([*(folder for _, folder in parents), name.rstrip("/")])
        paths.append(full)
        if name.endswith("/"):
            parents.append((indent, name.rstrip("/")))
    return paths


@pytest.mark.parametrize(
    "tree",
    [
        "libs/\n  fusion_core/    shared\n    db/  SQL\n  fusion_data/\ntests/\n  unit/  fast\n",
        "├── libs/  shared\n│   ├── fusion_core/\n│   │   └── db/\n│   └── fusion_data/\n└── tests/\n    └── unit/\n",
    ],
)
def test_the_tree_is_read_with_its_nesting(tree: str) -> None:
    expected = ["libs", "libs/fusion_core", "libs/fusion_core/db", "libs/fusion_data", "tests", "tests/unit"]
    assert tree_paths(tree) == expected


@pytest.mark.parametrize("service", [fusion_orchestrator.metrics, fusion_worker.metrics, fusion_api.metrics])
def test_every_metric_is_explained_and_no_other(service: ModuleType) -> None:
    """Each service's table has its registry's names, types and labels."""
    title = f"### Of the {service.__name__.split('.')[0].removeprefix('fusion_')}"
    table = (ROOT / "docs/operations.md").read_text().split(f"\n{title}\n")[1].split("\n#")[0]
    explained = re.findall(r"^\| `(fusion_\w+)` \| (\w+)(?:, by ([\w, ]+))? \| [^|]+ \|$", table, re.MULTILINE)
    expected = {
        (family.name + "_total" * (family.type == "counter"), family.type, labels_of(service, family.name))
        for family in service.Metrics().registry.collect()
    }
    assert {
        (name, kind, frozenset(re.findall(r"\w+", by.replace(" and ", " ")))) for name, kind, by in explained
    } == expected


def labels_of(service: ModuleType, name: str) -> frozenset[str]:
    metrics = vars(service.Metrics()).values()
    return next(frozenset(one._labelnames) for one in metrics if getattr(one, "_name", None) == name)
