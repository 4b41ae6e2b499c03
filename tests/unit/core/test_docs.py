"""docs/api.md has every operation, code and hyperparameter of the code and no other; names in docs/walk.md exist."""

import re
from pathlib import Path

import msgspec
import pytest
from fusion_api.app import create_app
from fusion_api.settings import ApiSettings
from fusion_core.job_spec import ContractHyperparams, FinetuneHyperparams, Hyperparams
from fusion_core.problems import PROBLEMS

ROOT = Path(__file__).parents[3]
API_PAGE = (ROOT / "docs/api.md").read_text()
WALK = (ROOT / "docs/walk.md").read_text()


def operations() -> set[tuple[str, str]]:
    settings = ApiSettings(database_url="postgresql://nowhere/none", s3_endpoint="", s3_access_key="", s3_secret_key="")
    return {
        (method, re.sub(r":\w+}", "}", route.path))
        for route in create_app(settings).routes
        if route.path.startswith("/api/") and "openapi" not in route.path and not route.path.startswith("/api/docs")
        for method in getattr(route, "methods", ())
        if method not in ("HEAD", "OPTIONS")
    }


def test_the_page_has_every_operation_and_no_other() -> None:
    documented = set(re.findall(r"^### `([A-Z]+) (/api/[^`]+)`$", API_PAGE, re.MULTILINE))
    assert documented == operations()
    assert len(documented) >= 18


def test_every_operation_names_its_scope_and_has_an_example() -> None:
    sections = re.findall(r"^### `([A-Z]+ /api/[^`]+)`\n(.*?)(?=^#{2,3} |\Z)", API_PAGE, re.MULTILINE | re.DOTALL)
    assert sections
    assert [name for name, text in sections if not re.match(r"\nScope `\w+`", text)] == []
    assert [name for name, text in sections if not re.search(r"```sh\n(.*\n)*?.*\bapi ['\"/]", text)] == []


def rows_below(heading: str) -> set[tuple[str, ...]]:
    """The cells of the table that starts with a heading, without the first cell's backticks."""
    lines = API_PAGE.split(heading, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")) for line in lines}


def test_the_tables_of_codes_are_the_registry() -> None:
    problems = PROBLEMS.values()
    assert rows_below("| code | status |") == {
        (one.code, str(one.status), one.title, one.advice) for one in problems if one.status is not None
    }
    assert rows_below("| code | what it means |") == {
        (one.code, one.title, one.advice) for one in problems if one.status is None
    }


def test_the_table_of_hyperparameters_has_each_with_its_default() -> None:
    shown = {row[0]: row[1] for row in rows_below("| hyperparameter |")}
    defaults = {field.name: field.default for field in msgspec.structs.fields(Hyperparams)}
    assert shown.keys() == defaults.keys()
    for name, default in defaults.items():
        assert shown[name] == _as_shown(default), name


@pytest.mark.parametrize(("table", "kind"), [("finetune", FinetuneHyperparams), ("contract", ContractHyperparams)])
def test_settings_of_other_types_are_in_their_table_or_those_of_train(table: str, kind: type[msgspec.Struct]) -> None:
    shown = {row[0]: row[1] for row in rows_below(f"| {table} hyperparameter |")}
    fields = {field.name: field.default for field in msgspec.structs.fields(kind)}
    of_train = {field.name: field.default for field in msgspec.structs.fields(Hyperparams)}
    assert shown.keys() <= fields.keys()
    for name, default in fields.items():
        assert shown[name] == _as_shown(default) if name in shown else of_train[name] == default, name


def _as_shown(default: object) -> str:
    if default is None:
        return "unset"
    return (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:g}"
        if default in (1e-4, 2e-4)
        else str(default)
    )


def test_the_walk_names_the_migration_that_defines_a_function_last() -> None:
    migrations = {path.name: path.read_text() for path in sorted((ROOT / "libs/fusion_core/db/migrations").iterdir())}
    named = re.findall(r"`(\w+)` of\s+`libs/fusion_core/db/migrations/([^`]+)`", WALK)
    assert named
    for function, migration in named:
        defining = [name for name, text in migrations.items() if f"function {function}(" in text]
        assert defining[-1] == migration, function


def test_functions_classes_and_settings_named_in_the_walk_exist() -> None:
    files = [path for folder in ("libs", "services") for path in (ROOT / folder).rglob("*")]
    code = "\n".join(path.read_text() for path in files if path.suffix in (".py", ".sql"))
    words = set(re.findall(r"\w+", code)) | {f"FUSION_{word.upper()}" for word in re.findall(r"(\w+): ", code)}
    named = set(re.findall(r"`(?:\w+\.)?([A-Za-z]\w*)(?:\([^`]*\))?`", WALK))
    assert len(named) > 40
    assert sorted(named - words) == []
