"""The live progress bar of a job, on a terminal; plain lines where the output is a file."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fusion_client.client import DAY_S, Fusion
from fusion_client.job_view import JobView
from fusion_client.models import Event, JobDetail


def watch(
    client: Fusion,
    job_id: str,
    console: Console,
    on_event: Callable[[Event], None] | None = None,
    *,
    timeout_s: float = DAY_S,
) -> JobDetail:
    """Follow a job until it is completed, failed or cancelled, and answer it as it then is.

    Shows phase, step, loss, tokens a second, time left and retries; an interruption is a line above the bar, and the
    bar goes back to the step it resumes from. `on_event` is called with each event after it is shown.
    Raises what Fusion.events raises; Ctrl-C leaves the job as it is.
    """
    view = JobView(client.get_job(job_id).progress.total_steps)
    with _bar(console) as bar:
        row = bar.add_task("queued", total=view.total_steps, texts=_texts(view))
        for event in client.events(job_id, timeout_s=timeout_s):
            message = view.apply(event)
            if message is not None:
                console.print(f"  {message}", markup=False, highlight=False)
            _show(bar, row, view)
            if on_event is not None:
                on_event(event)
    return client.get_job(job_id)


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[texts][steps]}"),
        TextColumn("{task.fields[texts][speed]}", style="cyan"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[texts][rest]}", style="green"),
        console=console,
        refresh_per_second=4,
        disable=not console.is_terminal,
    )


def _show(bar: Progress, row: TaskID, view: JobView) -> None:
    bar.update(row, description=view.status, completed=view.step, total=view.total_steps, texts=_texts(view))


def _texts(view: JobView) -> dict[str, str]:
    """The fields of the bar: step, loss and speed, time left and retries."""
    speed = [] if view.loss is None else [f"loss {view.loss:.4f}"]
    speed += [] if view.tokens_per_s is None else [f"{view.tokens_per_s:,.0f} tokens/s"]
    rest = [] if view.seconds_left is None else [f"{duration(view.seconds_left)} left"]
    rest += [f"retries {view.retries}"] if view.retries else []
    return {"steps": f"step {view.step}/{view.total_steps}", "speed": "  ".join(speed), "rest": "  ".join(rest)}


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 4:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
