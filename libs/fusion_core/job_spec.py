"""The customer's hyperparameters and the frozen spec that a job keeps for its whole life."""

import math
from typing import Annotated

import msgspec
from msgspec import Meta

from fusion_core.growth_plan import DEFAULT_GROWTH_FACTOR, GrowthPlan

SPEC_VERSION = 1

# Names, defaults and ranges are the product's contract.


class Hyperparams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a training job, as in `hyperparams` of POST /jobs."""

    turns: Annotated[int, Meta(ge=1, le=10)] = 1
    output_name: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = (
        None
    )
    cycles: Annotated[int, Meta(ge=1, le=1000)] = 6
    steps_per_cycle: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    train_steps: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    lr: Annotated[float, Meta(gt=0, le=1)] = 1e-4
    seq_len: Annotated[int, Meta(ge=8, le=131_072)] = 256
    batch_size: Annotated[int, Meta(ge=1, le=4096)] = 1
    growth_factor: Annotated[float, Meta(ge=1.0, le=4.0)] = DEFAULT_GROWTH_FACTOR
    replay_fraction: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.1
    warmup: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.02
    weight_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.01
    max_grad_norm: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0

    @property
    def steps_per_turn(self) -> int:
        return self.train_steps if self.train_steps is not None else self.cycles * self.steps_per_cycle

    @property
    def total_steps(self) -> int:
        return self.turns * self.steps_per_turn

    @property
    def tokens_per_step(self) -> int:
        return self.seq_len * self.batch_size

    @property
    def training_tokens(self) -> int:
        """The tokens that are billed: rehearsal rows are inside this count."""
        return self.total_steps * self.tokens_per_step

    def turn_of(self, step: int) -> int:
        """The turn (from 1) that step `step` (from 1) belongs to."""
        return (step - 1) // self.steps_per_turn + 1

    def cycle_of(self, step: int) -> int:
        """The cycle (from 1, through all turns); cycle k of a turn ends at ceil(k * steps_per_turn / cycles)."""
        turn, within = divmod(step - 1, self.steps_per_turn)
        return turn * self.cycles + within * self.cycles // self.steps_per_turn + 1

    def cycle_end(self, cycle: int) -> int:
        """The last step of a cycle, counted like `cycle_of`."""
        turn, within = divmod(cycle - 1, self.cycles)
        return turn * self.steps_per_turn + math.ceil((within + 1) * self.steps_per_turn / self.cycles)


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a train job does, resolved and frozen when it is created: no default is looked up later."""

    hyperparams: Hyperparams
    growth_plan: GrowthPlan
    base_model_name: str


class IngestSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an ingest job does: which uploads to read, as (storage key, file name)."""

    uploads: tuple[tuple[str, str], ...]
    heldout_percent: int = 2
