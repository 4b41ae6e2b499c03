"""The plot of a training curve. The only module that imports matplotlib; nothing imports it before it is drawn."""

from io import BytesIO
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

if TYPE_CHECKING:
    from fusion_engine.training_curve import TrainingCurve

_INCHES, _DOTS_PER_INCH = (9.0, 6.0), 100
_BLUE, _ORANGE, _GREY = "#1f6fb2", "#d9822b", "#8a8a8a"


def draw(curve: "TrainingCurve") -> bytes:
    """A PNG of 900 x 600: perplexities above, training loss below, over the steps; equal curves give equal bytes."""
    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [entry.step for entry in curve.evaluations]
    upper.plot(steps, [entry.perplexity for entry in curve.evaluations], "o-", color=_BLUE, label="held-out data")
    kept = [(entry.step, entry.retention_perplexity) for entry in curve.evaluations if entry.retention_perplexity]
    if kept:
        upper.plot(*zip(*kept, strict=True), "s--", color=_ORANGE, label="text of the base (retention)")
    upper.set(ylabel="perplexity", yscale="log")
    for axis in (upper.yaxis.set_major_formatter, upper.yaxis.set_minor_formatter):
        axis(ScalarFormatter())
    lower.plot([point.step for point in curve.losses], [point.loss for point in curve.losses], color=_GREY)
    lower.set(xlabel="step", ylabel="training loss")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        for entry in curve.evaluations:
            if entry.turn_end and entry.turn:
                axes.axvline(entry.step, color=_GREY, linewidth=0.8, linestyle=":")
    upper.legend()
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
