"""The methods that are compared: each is a job that Fusion can run, with one loop, data and evaluation for all."""

from dataclasses import dataclass
from typing import Any

from fusion_core.job_spec import FinetuneHyperparams, Hyperparams
from quality_base import SEQ_LEN

BATCH_SIZE, TURNS = 8, 3
REHEARSED_SHARE = 0.2
OTHER_PLACEMENTS = ("even", "upper")  # than the diagnosed one, which is the default


@dataclass(frozen=True)
class Method:
    """`settings` go to the job's hyperparameters; `rates` are where the sweep begins; rank 0 means no adapters."""

    label: str
    rates: tuple[float, ...]
    settings: dict[str, Any]
    lora_rank: int = 0


METHODS = {
    "full": Method(
        "full fine-tuning", (1e-3, 2e-3, 4e-3), {"growth_factor": 1.0, "train_scope": "all", "own_head": False}
    ),
    "lora": Method("LoRA, rank 16", (4e-3, 8e-3, 1.6e-2), {}, lora_rank=16),
    "expansion": Method(
        "frozen block expansion",
        (4e-3, 8e-3, 1.6e-2),
        {"train_scope": "new", "growth_placement": "even", "own_head": False},
    ),
    "fusion": Method("Fusion, default mode", (4e-3, 8e-3, 1.6e-2), {"train_scope": "new"}),
    "tied": Method(
        "Fusion, default mode, head left tied", (4e-3, 8e-3, 1.6e-2), {"train_scope": "new", "own_head": False}
    ),
    "deep": Method("Fusion, deep mode", (4e-3, 8e-3, 1.6e-2), {"train_scope": "all", "own_head": False}),
}
# Around each default of the training loop, one at a time, in Fusion's default mode.
SETTINGS = {
    "warmup": (0.0, 0.1),
    "weight_decay": (0.0, 0.1),
    "max_grad_norm": (0.3, 3.0),
}
FUSION, AT_EQUAL_COMPUTE = ("fusion", "deep"), ("fusion", "tied", "deep", "expansion", "lora")


@dataclass(frozen=True, order=True)
class Cell:
    """One training job of the comparison; `placement` overrides the method's own, `setting` (name, value) any other."""

    method: str
    rehearsal: bool
    lr: float
    seed: int
    steps: int
    placement: str = ""
    retain: float = 0.0
    setting: tuple[str, float] | None = None

    @property
    def key(self) -> str:
        parts = [self.method, "rehearsal" if self.rehearsal else "plain", f"lr{self.lr:g}", f"seed{self.seed}"]
        parts += [f"steps{self.steps}", self.placement, f"retain{self.retain:g}" if self.retain else ""]
        parts += [f"{name}{value:g}" for name, value in self._setting.items()]
        return "-".join(part for part in parts if part)

    def hyperparams(self) -> Hyperparams | FinetuneHyperparams:
        method = METHODS[self.method]
        shared: dict[str, Any] = {
            "lr": self.lr,
            "seed": self.seed,
            "seq_len": SEQ_LEN,
            "batch_size": BATCH_SIZE,
            "replay_fraction": REHEARSED_SHARE if self.rehearsal else 0.0,
        }
        shared |= self._setting
        if method.lora_rank:
            return FinetuneHyperparams(lora_rank=method.lora_rank, steps=self.steps, eval_every=self.steps, **shared)
        own = method.settings | ({"growth_placement": self.placement} if self.placement else {})
        return Hyperparams(turns=TURNS, cycles=1, train_steps=self.steps // TURNS, retain=self.retain, **(own | shared))

    @property
    def _setting(self) -> dict[str, float]:
        return dict([self.setting]) if self.setting else {}
