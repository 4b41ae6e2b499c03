"""How far training is: all that a checkpoint holds beside tensors and random states."""

import msgspec
from fusion_core.growth_plan import GrowthPlan
from fusion_core.trainer_protocol import Evaluation


class Progress(msgspec.Struct, kw_only=True):
    """`skipped_steps` counts consecutive steps without a finite loss.

    `growth_plan` is the plan that the job really grew by, where the diagnosis chose other places than run.json's.
    """

    step: int = 0
    skipped_steps: int = 0
    function_preservation: float = 0.0
    growth_plan: GrowthPlan | None = None
    evaluations: list[Evaluation] = msgspec.field(default_factory=list)
