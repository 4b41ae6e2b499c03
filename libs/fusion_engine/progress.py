"""How far training is: all that a checkpoint holds beside tensors and random states."""

import msgspec
from fusion_core.growth_plan import GrowthPlan
from fusion_core.trainer_protocol import Evaluation


class LossPoint(msgspec.Struct, frozen=True):
    """The mean training loss of `steps` steps, the last of which is `step`."""

    step: int
    loss: float
    steps: int


class Progress(msgspec.Struct, kw_only=True):
    """`skipped_steps` counts consecutive steps without a finite loss.

    `growth_plan` is the plan that the job really grew by, where the diagnosis chose other places than run.json's.
    """

    step: int = 0
    skipped_steps: int = 0
    function_preservation: float = 0.0
    growth_plan: GrowthPlan | None = None
    evaluations: list[Evaluation] = msgspec.field(default_factory=list)
    losses: tuple[LossPoint, ...] = ()

    def record_loss(self, loss: float, total_steps: int) -> None:
        """Add the loss of step `step`; the curve has at most 400 points however long the job is."""
        width = -(-total_steps // _CURVE_POINTS)
        last = self.losses[-1] if self.losses else None
        if last is None or (last.step - 1) // width != (self.step - 1) // width:
            self.losses += (LossPoint(self.step, loss, 1),)
            return
        mean = last.loss + (loss - last.loss) / (last.steps + 1)
        self.losses = (*self.losses[:-1], LossPoint(self.step, mean, last.steps + 1))


_CURVE_POINTS = 400
