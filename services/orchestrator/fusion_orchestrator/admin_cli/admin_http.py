"""The admin endpoints as commands call them: one place for the address, the token, errors, tables and JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import httpx
import typer
from fusion_core.operator_tokens import SECRET_PREFIX
from rich.table import Table

from fusion_orchestrator.admin_cli.running import err, fail, out

DEFAULT_URL = "http://127.0.0.1:8002"
_DEADLINE_S = 90.0  # a dry run of pruning takes up to a minute

AsJson = Annotated[bool, typer.Option("--json", help="Print what the endpoint answers, for programs.")]
Limit = Annotated[int, typer.Option(min=1, max=200, help="How many at most.")]
After = Annotated[str | None, typer.Option(metavar="ID", help="Go on after the last one of the page before.")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; it goes into the audit log.")]


class Access(NamedTuple):
    """How to reach the admin endpoints, as the command's own options and the environment say."""

    url: str
    token: str | None
    token_file: Path | None

    def secret(self) -> str:
        """Ends the command where there is none."""
        token = self.token
        if token is None and self.token_file is not None:
            try:
                token = self.token_file.read_text().strip()
            except OSError as error:
                fail(f"the operator token cannot be read: {error}")
        if token is None:
            fail("no operator token: set FUSION_OPERATOR_TOKEN or FUSION_OPERATOR_TOKEN_FILE; "
                 "`fusion-admin operators create` makes one")  # fmt: skip
        if not token.startswith(SECRET_PREFIX) or not token.isascii() or not token.isprintable():
            fail(f"the operator token does not begin with {SECRET_PREFIX}")
        return token


def call(context: typer.Context, method: str, path: str, **options: Any) -> Any:
    """The endpoint's answer. Ends the command with what is wrong and what to do."""
    access: Access = context.obj
    headers = {"Authorization": f"Bearer {access.secret()}"}
    address = f"{access.url.rstrip('/')}/admin{path}"
    try:
        answer = httpx.request(method, address, headers=headers, timeout=_DEADLINE_S, **options)
        body = answer.json()
    except (httpx.TransportError, httpx.InvalidURL) as error:
        fail(f"{access.url} does not answer ({error}): is it the orchestrator's admin port? Set FUSION_ADMIN_URL")
    except ValueError:
        fail(f"{access.url} answers {answer.status_code} without JSON: it is not the orchestrator's admin port")
    if not answer.is_success:
        _refuse(answer.status_code, body)
    return body


def _refuse(status: int, problem: Mapping[str, Any]) -> NoReturn:
    named = [f"\n  {error['pointer'] or 'body'}: {error['detail']}" for error in problem.get("errors", [])]
    fail(f"{problem.get('detail', status)}{''.join(named)}\n(request {problem.get('request_id', 'unknown')})")


def get(context: typer.Context, path: str, **query: Any) -> Any:
    """Options that were left out are no part of the query."""
    given = {name: value for name, value in query.items() if value is not None}
    return call(context, "GET", path, params=given)


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Rows under the names of their fields."""
    if as_json:
        out.print_json(json.dumps(rows))
        return
    table = Table(*(name.removesuffix("_at").replace("_", " ") for name in columns), box=None)
    for row in rows:
        table.add_row(*(shown(row[name]) for name in columns))
    out.print(table)
    if not rows:
        err.print("none")


def show_fields(fields: Mapping[str, Any], *, as_json: bool) -> None:
    """One thing, a line a field."""
    if as_json:
        out.print_json(json.dumps(fields))
        return
    for name, value in fields.items():
        out.print(f"{name.replace('_', ' '):22} {shown(value)}", markup=False)


def act(context: typer.Context, path: str, reason: str, *, as_json: bool, **body: Any) -> None:
    """Do it and say what was and what is; on stderr where nothing had to be done."""
    done = call(context, "POST", path, json={"reason": reason} | body)
    if as_json:
        out.print_json(json.dumps(done))
        return
    target = f"{done['target_type']} {done['target']}"
    if not done["changed"]:
        err.print(f"{target}: nothing to change", markup=False)
    before, after = done["before"] or {}, done["after"] or {}
    out.print(f"{done['action']} {target}", markup=False)
    for name in {**before, **after}:
        was, now = before.get(name), after.get(name)
        if was != now:
            out.print(f"  {name.replace('_', ' '):20} {shown(was)} -> {shown(now)}", markup=False)
        elif name == "state":
            out.print(f"  {name:20} {shown(now)}", markup=False)


def shown(value: Any) -> str:
    """A field for people: times to the second, lists and counts in a line."""
    kinds: dict[type, Callable[[Any], str]] = {
        type(None): lambda _: "-",
        bool: lambda one: "yes" if one else "no",
        float: lambda one: f"{one:.0f}",
        list: lambda many: ", ".join(map(shown, many)) or "-",
        dict: lambda fields: ", ".join(f"{name} {shown(one)}" for name, one in fields.items()) or "-",
        str: _text,
    }
    return kinds.get(type(value), str)(value)


def _text(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S}" if text[-1:] == "Z" else text
    except ValueError:
        return text
