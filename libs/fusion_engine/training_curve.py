"""The training curve that goes with a model: loss and perplexities as JSON, and a plot where matplotlib is installed.

Equal runs give equal bytes: the points are those of the progress, which a resumed attempt has from its checkpoint.
"""

from importlib.util import find_spec
from pathlib import Path

import msgspec
from fusion_core.trainer_protocol import Evaluation, Manifest

from fusion_engine.files import add_to_folder
from fusion_engine.progress import LossPoint, Progress

CURVE_FILE, PLOT_FILE = "training_curve.json", "training_curve.png"


class TrainingCurve(msgspec.Struct, frozen=True):
    """`losses` are means over up to 1/400 of the job's steps; `evaluations` begin with the base, turn 0."""

    losses: tuple[LossPoint, ...]
    evaluations: tuple[Evaluation, ...]

    @classmethod
    def of(cls, progress: Progress) -> "TrainingCurve":
        return cls(progress.losses, tuple(progress.evaluations))


def curve_files() -> dict[str, str | None]:
    """The names of the files that `add_curve` writes, as the job's result says them."""
    return {"data": CURVE_FILE, "plot": PLOT_FILE if _can_plot() else None}


def add_curve(folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """Put the curve into an exported folder; the manifest with its files."""
    curve = TrainingCurve.of(progress)
    files = {CURVE_FILE: msgspec.json.format(msgspec.json.encode(curve))}
    if _can_plot():
        from fusion_engine.plot import draw  # matplotlib takes a second to import

        files[PLOT_FILE] = draw(curve)
    return add_to_folder(folder, manifest, files)


def _can_plot() -> bool:
    return find_spec("matplotlib") is not None
