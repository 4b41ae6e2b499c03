"""The customer's hyperparameters and the frozen spec that a job keeps for its whole life."""

import math
from collections.abc import Collection
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fusion_core.contraction_plan import ContractionPlan
from fusion_core.growth_plan import DEFAULT_GROWTH_FACTOR, GrowthPlan

SPEC_VERSION = 1

# Names, defaults and ranges are the product's contract.
OutputName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
SeqLen = Annotated[int, Meta(ge=8, le=131_072)]
BatchSize = Annotated[int, Meta(ge=1, le=4096)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Precision = Literal["auto", "fp32", "bf16"]
BadRowPolicy = Literal["fail", "skip"]  # a bad row fails its dataset, or is left out and counted


class Hyperparams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a training job, as in `hyperparams` of POST /jobs."""

    turns: Annotated[int, Meta(ge=1, le=10)] = 1
    output_name: OutputName | None = None
    cycles: Annotated[int, Meta(ge=1, le=1000)] = 6
    steps_per_cycle: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    train_steps: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    lr: Rate = 1e-4
    seq_len: SeqLen = 256
    batch_size: BatchSize = 1
    gradient_accumulation: Annotated[int, Meta(ge=1, le=1024)] = 1
    growth_factor: Annotated[float, Meta(ge=1.0, le=4.0)] = DEFAULT_GROWTH_FACTOR
    layers_added: Annotated[int, Meta(ge=1, le=1024)] | None = None
    growth_axis: Literal["depth", "width"] = "depth"
    growth_placement: Literal["diagnosed", "upper", "even"] = "diagnosed"
    train_scope: Literal["new", "all"] = "new"
    own_head: bool | None = None
    old_lr_scale: Share = 0.2
    replay_fraction: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.2
    retain: Share = 0.0
    warmup: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.02
    weight_decay: Share = 0.01
    max_grad_norm: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0
    eval_every: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    precision: Precision = "auto"
    deterministic: bool = True
    seed: Seed = 0

    @property
    def steps_per_turn(self) -> int:
        return self.train_steps if self.train_steps is not None else self.cycles * self.steps_per_cycle

    @property
    def total_steps(self) -> int:
        return self.turns * self.steps_per_turn

    @property
    def tokens_per_step(self) -> int:
        return self.seq_len * self.batch_size * self.gradient_accumulation

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


def settle(hyperparams: Hyperparams, said: Collection[str]) -> tuple[Hyperparams, dict[str, str]]:
    """(settings that fit each other, what contradicts: its name and why). `said` names what was not left to a default.

    At growth_factor 1.0 nothing is new, so that all of it trains. Where everything trains, a tied head learns without
    being asked for one of its own.
    """
    faults = {}
    if hyperparams.layers_added is not None:
        if hyperparams.growth_axis == "width":
            faults["layers_added"] = "adds depth; width grows by growth_factor"
        elif "growth_factor" in said:
            faults["layers_added"] = "say either layers_added or growth_factor"
    elif hyperparams.growth_factor == 1.0:
        if "train_scope" in said and hyperparams.train_scope == "new":
            faults["train_scope"] = "nothing is new at growth_factor 1.0; choose 'all'"
        if hyperparams.own_head:
            faults["own_head"] = "is new, and growth_factor 1.0 adds nothing"
        hyperparams = msgspec.structs.replace(hyperparams, train_scope="all")
    if hyperparams.train_scope == "all" and hyperparams.own_head is None:
        hyperparams = msgspec.structs.replace(hyperparams, own_head=False)
    return hyperparams, faults


class FinetuneHyperparams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a fine-tuning job: LoRA adapters of rank `lora_rank`, merged into the weights at the end."""

    lora_rank: Annotated[int, Meta(ge=1, le=1024)] = 32
    steps: Annotated[int, Meta(ge=1, le=10_000_000)] = 2000
    output_name: OutputName | None = None
    lr: Rate = 2e-4
    seq_len: SeqLen = 256
    batch_size: BatchSize = 1
    gradient_accumulation: Annotated[int, Meta(ge=1, le=1024)] = 1
    replay_fraction: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.0
    warmup: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.02
    weight_decay: Share = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0
    eval_every: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    precision: Precision = "auto"
    deterministic: bool = True
    seed: Seed = 0

    def training(self) -> Hyperparams:
        """The same settings as the training loop reads them: one turn, nothing grown."""
        return Hyperparams(
            turns=1,
            cycles=min(6, self.steps),
            train_steps=self.steps,
            growth_factor=1.0,
            **{name: getattr(self, name) for name in _SHARED_WITH_TRAINING},
        )


HEALING_STEPS, HEALING_STEPS_LIMIT = 1000, 5000


class ContractHyperparams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a contraction; `train_steps` are the steps of healing that the flat fee includes."""

    contraction_ratio: Annotated[float, Meta(ge=0.1, le=0.9)] = 0.5
    num_layers_to_contract: Annotated[int, Meta(ge=1, le=10_000)] | None = None  # min(8, depth)
    output_name: OutputName | None = None
    train_steps: Annotated[int, Meta(ge=0, le=HEALING_STEPS_LIMIT)] = HEALING_STEPS
    importance: Literal["flap", "wanda"] = "flap"
    lr: Rate = 1e-4
    seq_len: SeqLen = 256
    batch_size: BatchSize = 1
    precision: Precision = "auto"
    seed: Seed = 0

    def healing(self) -> Hyperparams:
        """The settings of healing as the training loop reads them: one turn of `train_steps`, which may be none."""
        return Hyperparams(
            turns=1,
            cycles=max(1, min(6, self.train_steps)),
            train_steps=self.train_steps,
            growth_factor=1.0,
            lr=self.lr,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            precision=self.precision,
            seed=self.seed,
        )


_SHARED_WITH_TRAINING = tuple(
    name for name in FinetuneHyperparams.__struct_fields__ if name in Hyperparams.__struct_fields__
)


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a train job does, resolved and frozen when it is created: no default is looked up later."""

    hyperparams: Hyperparams
    growth_plan: GrowthPlan
    base_model_name: str

    @property
    def params_before(self) -> int:
        return self.growth_plan.params_before

    @property
    def params_after(self) -> int:
        return self.growth_plan.params_after

    @property
    def total_steps(self) -> int:
        return self.hyperparams.total_steps

    @property
    def tokens_per_step(self) -> int:
        return self.hyperparams.tokens_per_step


class FinetuneSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a finetune job does; the model keeps its size."""

    hyperparams: FinetuneHyperparams
    params: int
    base_model_name: str

    @property
    def params_before(self) -> int:
        return self.params

    @property
    def params_after(self) -> int:
        return self.params

    @property
    def total_steps(self) -> int:
        return self.hyperparams.steps

    @property
    def tokens_per_step(self) -> int:
        return self.hyperparams.training().tokens_per_step


class ContractSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a contract job does, resolved and frozen when it is created; its steps are those of healing."""

    hyperparams: ContractHyperparams
    contraction_plan: ContractionPlan
    base_model_name: str

    @property
    def params_before(self) -> int:
        return self.contraction_plan.params_before

    @property
    def params_after(self) -> int:
        return self.contraction_plan.params_after

    @property
    def total_steps(self) -> int:
        return self.hyperparams.train_steps

    @property
    def tokens_per_step(self) -> int:
        return self.hyperparams.seq_len * self.hyperparams.batch_size


class SampleSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an internal sample job does: draw `rows` sequences of `seq_len` ids from a base model at temperature 1."""

    rows: int = 768
    seq_len: int = 256
    seed: int = 0


class IngestSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an ingest job does: which uploads to read, as (storage key, file name), and what a bad row does."""

    uploads: tuple[tuple[str, str], ...]
    policy: BadRowPolicy = "fail"
    heldout_percent: int = 2


CustomerSpec = TrainSpec | FinetuneSpec | ContractSpec
CUSTOMER_SPECS: dict[str, type[CustomerSpec]] = {"train": TrainSpec, "finetune": FinetuneSpec, "contract": ContractSpec}
INTERNAL_TYPES = frozenset({"ingest", "sample"})  # neither shown to customers nor billed


def read_customer_spec(job_type: str, spec: dict[str, object]) -> CustomerSpec:
    """The frozen spec of a job that a customer created, as its row holds it. Raises KeyError for an internal type."""
    return msgspec.convert(spec, CUSTOMER_SPECS[job_type])
