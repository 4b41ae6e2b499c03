"""fusion-local: the embedded stack's command, behind `make up`, `make down` and `make demo`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fusion_local.processes import ChildDiedError, kill_leftovers
from fusion_local.services import AlreadyRunningError, LocalFusion

app = typer.Typer(no_args_is_help=True, help="All of Fusion on this machine: real PostgreSQL, Valkey, S3 and services.")
console = Console(highlight=False)
Root = Annotated[Path, typer.Option("--root", envvar="FUSION_LOCAL_ROOT", help="Where data lives.")]


@app.command()
def up(root: Root = Path(".fusion")) -> None:
    """Run the stack until Ctrl-C. Data survives a restart."""
    console.print("Starting Fusion")
    try:
        with LocalFusion(root, console) as fusion:
            access = fusion.access
            console.print(f"\n  API       {access.url}/api")
            console.print(f"  docs      {access.url}/api/docs")
            shown = f"{access.key}  (shown once)" if access.is_new else "the one of the last run"
            console.print(f"  API key   {shown}")
            console.print(f"  data      {fusion.root}")
            console.print(f"\nIn another terminal:  source {root}/env && fusion base-models\nCtrl-C stops everything.")
            fusion.run_until_interrupted()
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
    except (AlreadyRunningError, ChildDiedError, TimeoutError) as error:
        console.print(f"[red]{error}[/]", markup=True)
        sys.exit(1)


@app.command()
def down(root: Root = Path(".fusion")) -> None:
    """End what a crashed run left behind."""
    killed = kill_leftovers(root)
    console.print(f"Ended: {', '.join(killed)}" if killed else "Nothing was running.")


@app.command()
def demo(
    root: Root = Path(".fusion"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again instead of showing the finished job.")] = False,
) -> None:
    """Grow, train, kill, resume, deliver: the whole product in minutes, as a customer sees it."""
    from fusion_local.demo.run import DemoError, run_demo

    try:
        run_demo(root, console, fresh=fresh)
    except KeyboardInterrupt:
        console.print("\nInterrupted; nothing is left running. The next make demo goes on from what is there.")
        sys.exit(130)
    except (AlreadyRunningError, ChildDiedError, DemoError, TimeoutError) as error:
        console.print(f"[red]{error}[/]")
        sys.exit(1)


if __name__ == "__main__":
    app()
