"""Bodies of POST /jobs, one a type: what a customer may say, before anything is looked up."""

from typing import Annotated
from uuid import UUID

import msgspec
from fusion_core.job_spec import ContractHyperparams, FinetuneHyperparams, Hyperparams
from fusion_core.priority import Priority

from fusion_api.placement import Compute

IdempotencyKey = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


LabelKey = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
MAX_LABELS = 16


class JobBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """What every type takes. `labels` and `description` are the customer's own, and change nothing.

    `priority` orders jobs before an account's share does; `compute` is the machine asked for, the usual one if unset.
    """

    idempotency_key: IdempotencyKey
    priority: Priority = "normal"
    compute: Compute | None = None
    labels: Annotated[dict[LabelKey, LabelValue], msgspec.Meta(max_length=MAX_LABELS)] = {}
    description: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)] | None = None


class TrainBody(JobBody, frozen=True, kw_only=True, tag="train"):
    """Grow and train. `base_model_id` is a catalog model's id or that of one of the account's own models."""

    base_model_id: UUID
    dataset_id: UUID
    hyperparams: Hyperparams = Hyperparams()


class FinetuneSettings(FinetuneHyperparams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hyperparams of a fine-tuning, where the model may be named too."""

    source_model_id: UUID | None = None


class FinetuneBody(JobBody, frozen=True, kw_only=True, tag="finetune"):
    """LoRA without a change of size. The model is named once: by `base_model_id`, or by `source_model_id` here or
    in the hyperparams."""

    dataset_id: UUID
    base_model_id: UUID | None = None
    source_model_id: UUID | None = None
    hyperparams: FinetuneSettings = FinetuneSettings()


class ContractSettings(ContractHyperparams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hyperparams of a contraction, which name the model."""

    source_model_id: UUID


class ContractBody(JobBody, frozen=True, kw_only=True, tag="contract"):
    """Shrink a model of the account. Without a dataset it heals on text sampled from the model itself."""

    hyperparams: ContractSettings
    dataset_id: UUID | None = None


CreateJob = TrainBody | FinetuneBody | ContractBody
