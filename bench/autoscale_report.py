"""What `autoscale.py` found, as a table, as JSON and as a plot."""

from pathlib import Path

import matplotlib as mpl
import msgspec
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

mpl.use("Agg")
WASTE = ("idle", "empty", "starting", "resuming", "saving", "repeated")
_COLUMNS = (
    *("mode", "nodes", "paid", "used", "wasted", *WASTE),
    *("wait p50", "wait p95", "scaled in busy", "spot", "lost steps"),
)
_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"
_COLOURS = ("#9aa5b1", "#d5dae0", "#e6b450", "#c98bdb", "#7fb2e5", "#d9534f")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One mode's day. GPU-hours, seconds, and counts of attempts; `wasted_h` by what the GPU was paid for."""

    mode: str
    spot: bool
    jobs: int
    completed: int
    hours: float
    most_nodes: int
    paid_h: float
    used_h: float
    wasted_h: dict[str, float]
    wait_p50_s: float
    wait_p95_s: float
    scaled_in: int
    noticed: int
    unnoticed: int
    lost_steps: int
    most_lost_s: float
    faults: list[str]

    @property
    def wasted(self) -> float:
        return sum(self.wasted_h.values())


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Everything, with what was supposed."""

    supposed: dict[str, float]
    pool: dict[str, float]
    checkpoint_s: float
    offered_h: float
    outcomes: list[Outcome]


def _heading(results: Results) -> str:
    supposed, pool = results.supposed, results.pool
    return (
        f"{results.outcomes[0].jobs} jobs of {results.offered_h:.1f} GPU-hours, {supposed['hours']:.0f} h, seed "
        f"{supposed['seed']:.0f}; a pool of {pool['least']:.0f} to {pool['most']:.0f}, idleSeconds {pool['idle_s']:.0f}"
    )


def _rows(results: Results) -> list[list[str]]:
    return [
        [
            one.mode,
            "spot" if one.spot else "on demand",
            *(f"{hours:.1f}" for hours in (one.paid_h, one.used_h, one.wasted)),
            *(f"{abs(one.wasted_h[kind]):.1f}" for kind in WASTE),
            f"{one.wait_p50_s / 60:.1f}",
            f"{one.wait_p95_s / 60:.1f}",
            str(one.scaled_in),
            f"{one.noticed} + {one.unnoticed}",
            str(one.lost_steps),
        ]
        for one in results.outcomes
    ]


def show(results: Results) -> None:
    console = Console(width=170)
    table = Table(*_COLUMNS, title=_heading(results), caption="GPU-hours; minutes of waiting; attempts")
    for column in table.columns:
        column.no_wrap, column.justify = True, "right"
    for row in _rows(results):
        table.add_row(*row)
    console.print(table)
    for one in results.outcomes:
        for fault in one.faults:
            console.print(f"{one.mode}: {fault}", style="red", markup=False)


def write_page(results: Results, page: Path) -> None:
    """Put the table in place of the one between the page's marks. Raises ValueError where it has none."""
    before, _, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"{page}: no {_BEGIN} ... {_END}")
    lines = [list(_COLUMNS), ["---", "---", *["---:"] * (len(_COLUMNS) - 2)], *_rows(results)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    page.write_text(f"{before}{_BEGIN}\n{_heading(results)}.\n\n{table}\n{end}{after}")


def draw(results: Results, path: Path) -> None:
    """GPU-hours by what they were paid for, and how long jobs waited."""
    figure, (hours, waits) = plt.subplots(1, 2, figsize=(12, 0.5 * len(results.outcomes) + 1.6), sharey=True)
    names = [f"{one.mode}, {'spot' if one.spot else 'on demand'}" for one in results.outcomes]
    left = [one.used_h for one in results.outcomes]
    hours.barh(names, left, color="#4c9a6a", label="used")
    for kind, colour in zip(WASTE, _COLOURS, strict=True):
        widths = [one.wasted_h[kind] for one in results.outcomes]
        hours.barh(names, widths, left=left, color=colour, label=kind)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    hours.set_xlabel("GPU-hours paid")
    hours.invert_yaxis()
    places = range(len(names))
    waits.barh([place - 0.2 for place in places], [one.wait_p50_s / 60 for one in results.outcomes], 0.4, label="p50")
    waits.barh([place + 0.2 for place in places], [one.wait_p95_s / 60 for one in results.outcomes], 0.4, label="p95")
    waits.set_xscale("symlog", linthresh=1)
    waits.set_xlabel("minutes to the first claim, logarithmic from 1 on")
    hours.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=8)
    waits.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
