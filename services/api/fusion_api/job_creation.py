"""From a request body to a frozen job: defaults resolved, growth planned, price fixed."""

import hashlib
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fusion_core.db.jobs import NewJob
from fusion_core.db.pool import queries
from fusion_core.growth_plan import GrowthPlan, plan_growth
from fusion_core.job_spec import Hyperparams, TrainSpec
from fusion_core.model_shapes import UnsupportedArchitectureError
from fusion_core.money import PriceError, estimate_train

from fusion_api.auth import Caller
from fusion_api.pricing import current_prices
from fusion_api.problem_details import FieldError, ProblemError, not_found
from fusion_api.services import Services


class CreateJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`base_model_id` is a catalog model's id or one of the account's own models'."""

    type: Literal["train"]
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    base_model_id: UUID
    dataset_id: UUID
    hyperparams: Hyperparams = Hyperparams()


def canonical_sha256(body: bytes) -> bytes:
    """The hash of a JSON body that does not depend on white space or the order of its members."""
    return hashlib.sha256(msgspec.json.encode(msgspec.json.decode(body), order="sorted")).digest()


async def resolve(services: Services, caller: Caller, data: CreateJob, body: bytes) -> NewJob:
    """Raises ProblemError not_found, dataset_not_ready, unsupported_architecture or validation_failed."""
    config, name, base_model_id, source_model_id = await _base(services, caller, data.base_model_id)
    await _check_dataset(services, caller, data.dataset_id)
    plan = _plan(config, data.hyperparams)
    prices = await current_prices(services.pool)
    try:
        estimate = estimate_train(prices, plan.params_before, plan.params_after, data.hyperparams.training_tokens)
    except PriceError as error:
        raise ProblemError("validation_failed", str(error), [FieldError("/base_model_id", str(error))]) from error
    return NewJob(
        account_id=caller.account_id,
        type=data.type,
        spec=TrainSpec(hyperparams=data.hyperparams, growth_plan=plan, base_model_name=name),
        pool=services.settings.training_pool,
        dataset_id=data.dataset_id,
        base_model_id=base_model_id,
        source_model_id=source_model_id,
        idempotency_key=data.idempotency_key,
        request_sha256=canonical_sha256(body),
        price_version=prices.version,
        estimate=estimate,
    )


async def _base(
    services: Services, caller: Caller, model_id: UUID
) -> tuple[dict[str, Any], str, UUID | None, UUID | None]:
    """(config, name, catalog id or None, own model's id or None)."""
    row = await queries.get_base_model(services.pool, base_model_id=model_id)
    if row is not None:
        return row["config"], row["name"], model_id, None
    row = await queries.get_model(services.pool, account_id=caller.account_id, model_id=model_id)
    if row is None:
        raise not_found("base model, nor a model of yours", "/base_model_id")
    return row["config"], row["name"], None, model_id


async def _check_dataset(services: Services, caller: Caller, dataset_id: UUID) -> None:
    row = await queries.get_dataset(services.pool, account_id=caller.account_id, dataset_id=dataset_id)
    if row is None:
        raise not_found("dataset", "/dataset_id")
    if row["status"] != "ready":
        errors = [FieldError("/dataset_id", f"the dataset is {row['status']}")]
        raise ProblemError("dataset_not_ready", f"the dataset is {row['status']}", errors)


def _plan(config: dict[str, Any], hyperparams: Hyperparams) -> GrowthPlan:
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and hyperparams.seq_len > positions:
        detail = f"is beyond the base model's {positions} positions"
        raise ProblemError("validation_failed", f"seq_len {detail}", [FieldError("/hyperparams/seq_len", detail)])
    try:
        plan = plan_growth(
            config,
            growth_factor=hyperparams.growth_factor,
            layers_added=hyperparams.layers_added,
            axis=hyperparams.growth_axis,
            placement="even" if hyperparams.growth_placement == "even" else "upper",
        )
    except UnsupportedArchitectureError as error:
        errors = [FieldError("/base_model_id", str(error))]
        raise ProblemError("unsupported_architecture", str(error), errors) from error
    except ValueError as error:  # the message names the setting and what is possible
        raise ProblemError("validation_failed", str(error), [FieldError("/hyperparams", str(error))]) from error
    if not plan.params_added:
        detail = "adds nothing; choose more than 1.0"
        raise ProblemError("validation_failed", "nothing to train", [FieldError("/hyperparams/growth_factor", detail)])
    return plan
