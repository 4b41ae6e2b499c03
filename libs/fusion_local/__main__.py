"""fusion-local: the embedded stack's command, behind `make up`, `make down` and `make demo`."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from fusion_client.errors import FusionError
from rich.console import Console

from fusion_local.processes import ChildDiedError
from fusion_local.run_lock import AlreadyRunningError
from fusion_local.services import LocalFusion, stop_local
from fusion_local.stack import StackError

app = typer.Typer(no_args_is_help=True, help="All of Fusion on this machine: real PostgreSQL, Valkey, S3 and services.")
console = Console(highlight=False)
Root = Annotated[Path, typer.Option("--root", envvar="FUSION_LOCAL_ROOT", help="Where data lives.")]


@contextlib.contextmanager
def _ending_politely(goodbye: str, interrupted_code: int) -> Iterator[None]:
    """What a person can expect to happen is one message, not a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\n{goodbye}")
        sys.exit(interrupted_code)
    except (AlreadyRunningError, ChildDiedError, StackError, FusionError, TimeoutError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def up(root: Root = Path(".fusion")) -> None:
    """Run the stack until Ctrl-C. Data survives a restart."""
    console.print("Starting Fusion")
    with _ending_politely("Stopped; nothing is left running.", 0), LocalFusion(root, console) as fusion:
        access = fusion.access
        shown = f"{access.key}  (shown once)" if access.is_new else f"the one of the last run, in {root}/env"
        for name, value in (
            ("API", f"{access.url}/api"),
            ("docs", f"{access.url}/api/docs"),
            ("API key", shown),
            ("admin", f"{access.admin_url}/admin  (operator token in {root}/operator.env)"),
            ("data", str(fusion.root)),
        ):
            console.print(f"  {name:<9} {value}", markup=False, soft_wrap=True)
        console.print(
            f"\nIn another terminal:  source {root}/env && {Path(sys.executable).parent / 'fusion'} base-models",
            soft_wrap=True,
        )
        console.print("Ctrl-C stops everything.")
        fusion.run_until_interrupted()


@app.command()
def down(root: Root = Path(".fusion")) -> None:
    """End a running stack, or what a crashed one left behind."""
    with _ending_politely("Interrupted.", 130):
        ended = stop_local(root)
        console.print(f"Ended: {', '.join(ended)}" if ended else "Nothing was running.")


@app.command()
def demo(
    root: Root = Path(".fusion"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again instead of showing the finished job.")] = False,
) -> None:
    """Grow, train, kill, resume, deliver: the whole product in minutes, as a customer sees it."""
    from fusion_local.demo.run import DemoError, run_demo

    goodbye = "Interrupted; nothing is left running. The next make demo goes on from what is there."
    with _ending_politely(goodbye, 130):
        try:
            run_demo(root, console, fresh=fresh)
        except DemoError as error:
            console.print(str(error), style="red", markup=False, soft_wrap=True)
            sys.exit(1)


if __name__ == "__main__":
    app()
