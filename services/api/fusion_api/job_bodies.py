"""Bodies of POST /jobs, one a type: what a customer may say, before anything is looked up."""

from typing import Annotated
from uuid import UUID

import msgspec
from fusion_core.job_spec import ContractHyperparams, FinetuneHyperparams, Hyperparams

IdempotencyKey = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class TrainBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="train"):
    """Grow and train. `base_model_id` is a catalog model's id or that of one of the account's own models."""

    idempotency_key: IdempotencyKey
    base_model_id: UUID
    dataset_id: UUID
    hyperparams: Hyperparams = Hyperparams()


class FinetuneSettings(FinetuneHyperparams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hyperparams of a fine-tuning, where the model may be named too."""

    source_model_id: UUID | None = None


class FinetuneBody(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="finetune"
):
    """LoRA without a change of size. The model is named once: by `base_model_id`, or by `source_model_id` here or
    in the hyperparams."""

    idempotency_key: IdempotencyKey
    dataset_id: UUID
    base_model_id: UUID | None = None
    source_model_id: UUID | None = None
    hyperparams: FinetuneSettings = FinetuneSettings()


class ContractSettings(ContractHyperparams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hyperparams of a contraction, which name the model."""

    source_model_id: UUID


class ContractBody(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="contract"
):
    """Shrink a model of the account. Without a dataset it heals on text sampled from the model itself."""

    idempotency_key: IdempotencyKey
    hyperparams: ContractSettings
    dataset_id: UUID | None = None


CreateJob = TrainBody | FinetuneBody | ContractBody
