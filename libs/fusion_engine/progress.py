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
    """`skipped_steps` counts consecutive steps without a finite loss, `rollbacks` the returns to a checkpoint for them.

    `micro_batch` counts the rows of all processes that are computed at once, None for batch_size.

    `growth_plan` is the plan that the job really grew by, where the diagnosis chose other places than run.json's.
    """

    step: int = 0
    skipped_steps: int = 0
    rollbacks: int = 0
    micro_batch: int | None = None
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

    def snapshot(self) -> "Progress":
        """A copy that later steps do not change."""
        return msgspec.structs.replace(self, evaluations=list(self.evaluations))

    def go_back_to(self, earlier: "Progress") -> None:
        """Become a copy of `earlier`, for all who hold this object."""
        copy = earlier.snapshot()
        for name in self.__struct_fields__:
            setattr(self, name, getattr(copy, name))


_CURVE_POINTS = 400
