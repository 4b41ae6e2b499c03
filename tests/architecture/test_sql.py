"""SQL: every named query fits the schema, and a job's state is assigned in one file."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from fusion_core.db.pool import queries
from fusion_core.states import TRANSITIONS, State

ROOT = Path(__file__).parents[2]
SQL = ROOT / "libs/fusion_core/db/sql"
TRANSITIONS_SQL = SQL / "transitions.sql"
STATE_COLUMNS = frozenset(
    {
        "state",
        "lease_owner",
        "lease_epoch",
        "attempt_id",
        "lease_expires_at",
        "cancel_requested_at",
        "stop_requested_at",
    }
)


def query_names() -> list[str]:
    return [name for name in queries.available_queries if not name.endswith("_cursor")]


async def test_every_named_query_prepares_against_the_migrated_schema(database_url: str) -> None:
    faults = []
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        for name in query_names():
            try:
                await connection.prepare(getattr(queries, name).sql)
            except asyncpg.PostgresError as error:
                faults.append(f"{name}: {error}")
    finally:
        await connection.close()
    assert len(query_names()) > 20
    assert faults == []


def test_every_named_query_is_called() -> None:
    code = "\n".join(path.read_text() for path in python_files())
    assert [name for name in query_names() if not re.search(rf"\bqueries\.{name}\b", code)] == [], (
        "delete what nobody calls"
    )


def python_files() -> list[Path]:
    return [path for folder in ("libs", "services") for path in sorted((ROOT / folder).rglob("*.py"))]


def set_clauses(sql: str) -> Iterator[str]:
    """What each `update jobs` of a text assigns: from SET to WHERE, FROM, RETURNING or the end, at the same depth."""
    sql = re.sub(r"--[^\n]*", "", sql)
    for match in re.finditer(r"\bupdate\s+jobs\b(?:\s+(?:as\s+)?(?!set\b)\w+)?\s+set\b", sql, re.IGNORECASE):
        depth, clause = 0, ""
        for token in re.findall(r"'(?:[^']|'')*'|\w+|\s+|.", sql[match.end() :], re.DOTALL):
            depth += (token == "(") - (token == ")")
            ends = token == ";" or token.lower() in ("where", "from", "returning")
            if depth < 0 or (depth == 0 and ends):
                break
            clause += token if depth == 0 else ""
        yield clause


def assigned_state_columns(sql: str) -> set[str]:
    assigned = {
        name for clause in set_clauses(sql) for name in re.findall(r"(?:^|,)\s*(?:\w+\.)?\"?(\w+)\"?\s*=(?!=)", clause)
    }
    inserts = set(STATE_COLUMNS) if re.search(r"\binsert\s+into\s+jobs\b", sql, re.IGNORECASE) else set()
    return (assigned & STATE_COLUMNS) | inserts


def sql_in_python(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_state_is_assigned_in_transitions_only() -> None:
    sql_files = [path for folder in ("libs", "services") for path in sorted((ROOT / folder).rglob("*.sql"))]
    faults = [
        f"{path.relative_to(ROOT)}: {sorted(columns)}"
        for path in sql_files
        if path != TRANSITIONS_SQL and (columns := assigned_state_columns(path.read_text()))
    ]
    faults += [
        f"{path.relative_to(ROOT)}: {text[:60]!r}"
        for path in python_files()
        for text in sql_in_python(path)
        if assigned_state_columns(text)
    ]
    assert faults == []
    assert assigned_state_columns(TRANSITIONS_SQL.read_text()) == STATE_COLUMNS


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("update jobs set state = 'queued' where id = 1", {"state"}),
        ("UPDATE jobs j SET retries = 1,\n attempt_id = null", {"attempt_id"}),
        ("update jobs set a = (select x from y where state = 'b'), lease_owner = 2", {"lease_owner"}),
        ("with x as (update jobs set a = 1 where state = 'b' returning id) select state = 'c' from x", set()),
        ("update jobs set a = 1 where state = 'queued' and lease_epoch = 2", set()),
        ("update checkpoints set state = 'lost'", set()),
        ("insert into jobs (id) values (1)", STATE_COLUMNS),
    ],
)
def test_the_search_for_assignments_finds_them(sql: str, columns: set[str]) -> None:
    assert assigned_state_columns(sql) == columns


def statements() -> dict[str, str]:
    """Name -> text of each statement of transitions.sql, comments included."""
    parts = re.split(r"^-- name: (\w+)", TRANSITIONS_SQL.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_comments_of_transitions_name_the_pairs_of_the_table() -> None:
    documented: dict[tuple[State, State], set[str]] = {}
    for name, text in statements().items():
        for before, after in re.findall(r"(\w+) -> (\w+)", text.split("\n")[1]):
            if before != "new":
                documented.setdefault((State(before), State(after)), set()).add(name)
    assert documented == {pair: set(names) for pair, names in TRANSITIONS.items()}


def test_each_transition_assigns_the_state_it_leads_to() -> None:
    for (before, after), names in TRANSITIONS.items():
        for name in names:
            text = statements()[name]
            assigned = re.findall(r"\bstate = '(\w+)'", next(iter(set_clauses(text))))
            assert assigned == ([] if before == after else [after]), name
