"""docs/settings.md is written from the settings classes; after a change run this file as a script."""

import ast
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/settings.md"
SOURCES = {"all": ROOT / "libs/fusion_core/settings.py"} | {
    path.parents[1].name: path for path in sorted((ROOT / "services").glob("*/*/settings.py"))
}
INTRODUCTION = """# Settings

Each is an environment variable, read once when a process starts; a process that finds a bad or missing value names them
all and exits. `fusion-admin` reads those of all services. Times are in seconds and sizes in bytes. This page is written
by `tests/architecture/test_settings_page.py` from the classes' own text.

Any of them may come from a file instead, as the secrets of containers do: `FUSION_DATABASE_URL_FILE` names the file
that holds `FUSION_DATABASE_URL`, and so on. A service removes every `Secret` from its environment once it has read it.
"""


class Setting(msgspec.Struct, frozen=True):
    name: str
    kind: str
    default: str | None  # as Python writes it; None: required
    meaning: str

    @property
    def row(self) -> str:
        default = "required" if self.default is None else f"`{self.default}`"
        return f"| `FUSION_{self.name.upper()}` | {self.kind} | {default} | {self.meaning} |"


def settings_of(path: Path) -> list[Setting]:
    """The annotated fields of the classes whose name ends in Settings, each with the string below it."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if not (isinstance(node, ast.ClassDef) and node.name.endswith("Settings")):
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            meaning = " ".join(str(after.value.value).split()) if told else ""  # type: ignore[union-attr]
            kind = ast.unparse(field.annotation).replace(" | None", "").replace("|", "or")
            default = None if field.value is None else _number_or_text(field.value)
            found.append(Setting(field.target.id, kind, default, meaning))
    return found


def _number_or_text(default: ast.expr) -> str:
    text = ast.unparse(default)
    if any(isinstance(node, ast.BinOp) for node in ast.walk(default)):
        return str(eval(text, {"__builtins__": {}}))  # noqa: S307 arithmetic of our own source
    return {"None": "unset", "": "empty"}.get(text.strip("'\""), text.strip("'\""))


def all_settings() -> dict[str, list[Setting]]:
    """By service. A setting that several services share is explained where one of them explains it."""
    found = {service: settings_of(source) for service, source in SOURCES.items()}
    meanings = {one.name: one.meaning for settings in found.values() for one in settings if one.meaning}
    return {
        service: [msgspec.structs.replace(one, meaning=one.meaning or meanings.get(one.name, "")) for one in settings]
        for service, settings in found.items()
    }


def page() -> str:
    parts = [INTRODUCTION]
    for service, settings in all_settings().items():
        rows = [setting.row for setting in settings]
        title = "All services" if service == "all" else f"The {service}"
        parts.append(
            "\n".join([f"## {title}\n", "| variable | type | default | meaning |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def test_every_setting_says_what_it_means() -> None:
    silent = [
        f"{service}: {one.name}" for service, settings in all_settings().items() for one in settings if not one.meaning
    ]
    assert silent == [], "write a string below each of these fields"


def test_no_setting_is_read_elsewhere() -> None:
    """Every FUSION_ name in the services' code is a setting; os.environ is read in one place."""
    strangers = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "services").rglob("*.py"))
        if "os.environ[" in path.read_text() or "os.getenv(" in path.read_text() or "environ.get(" in path.read_text()
    ]
    assert strangers == []


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python tests/architecture/test_settings_page.py"


if __name__ == "__main__":
    PAGE.write_text(page())
