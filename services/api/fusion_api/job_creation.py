"""From a request body to a frozen job: models and datasets found, defaults resolved, work planned, price fixed."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from fusion_core.contraction_plan import ContractionPlan, plan_contraction
from fusion_core.db.jobs import NewJob
from fusion_core.growth_plan import GrowthPlan, plan_growth
from fusion_core.job_spec import (
    ContractHyperparams,
    ContractSpec,
    CustomerSpec,
    FinetuneHyperparams,
    FinetuneSpec,
    Hyperparams,
    TrainSpec,
    settle,
)
from fusion_core.model_shapes import UnsupportedArchitectureError, family_of
from fusion_core.money import (
    Estimate,
    PriceError,
    PriceTable,
    TooManyTokensError,
    estimate_contract,
    estimate_finetune,
    estimate_train,
)
from fusion_core.priority import NUMBERS
from fusion_http.problem_details import FieldError, ProblemError, invalid

from fusion_api.auth import Caller
from fusion_api.base_models import FoundModel, find_base, find_own_model
from fusion_api.datasets import trainable_dataset
from fusion_api.job_bodies import ContractBody, CreateJob, FinetuneBody, TrainBody
from fusion_api.placement import place
from fusion_api.pricing import current_prices
from fusion_api.services import Services


class Resolved(NamedTuple):
    spec: CustomerSpec
    estimate: Estimate
    found: FoundModel


def canonical_sha256(body: bytes) -> bytes:
    """The hash of a JSON body that does not depend on white space or the order of its members."""
    return hashlib.sha256(msgspec.json.encode(msgspec.json.decode(body), order="sorted")).digest()


async def resolve(services: Services, caller: Caller, data: CreateJob, body: bytes) -> tuple[NewJob, FoundModel]:
    """The job to create, and the model it starts from.

    Raises ProblemError not_found, dataset_not_ready, unsupported_architecture, no_fitting_pool or validation_failed.
    """
    prices = await current_prices(services.pool)
    resolved, pool = await plan_job(services, caller, data, msgspec.json.decode(body), prices)
    if data.dataset_id is not None:
        await trainable_dataset(services, caller, data.dataset_id)
    base = resolved.found.base
    new = NewJob(
        account_id=caller.account_id,
        type=str(type(data).__struct_config__.tag),
        spec=resolved.spec,
        pool=pool,
        priority=NUMBERS[data.priority],
        gpu_class=data.compute.gpu_class if data.compute else None,
        gpu_count=data.compute.gpu_count if data.compute else None,
        dataset_id=data.dataset_id,
        base_model_id=base.base_model_id,
        source_model_id=base.model_id,
        labels=data.labels,
        description=data.description,
        idempotency_key=data.idempotency_key,
        request_sha256=canonical_sha256(body),
        price_version=prices.version,
        estimate=resolved.estimate,
        deadline_s=services.settings.job_deadline_h * 3600,
    )
    return new, resolved.found


async def plan_job(
    services: Services, caller: Caller, data: CreateJob, said: dict[str, Any], prices: PriceTable
) -> tuple[Resolved, str]:
    """What a job would do and cost, and the pool that it would go to; nothing is created.

    `said` is the body before defaults. Raises ProblemError not_found, unsupported_architecture, no_fitting_pool or
    validation_failed.
    """
    match data:
        case TrainBody():
            resolved = await _train(services, caller, data, said.get("hyperparams", {}), prices)
        case FinetuneBody():
            resolved = await _finetune(services, caller, data, prices)
        case ContractBody():
            resolved = await _contract(services, caller, data, prices)
    return resolved, await place(services.pool, services.settings.training_pool, data.compute, resolved.spec)


# -- one function a type ---------------------------------------------------------------------------------------------


async def _train(
    services: Services, caller: Caller, data: TrainBody, said: dict[str, Any], prices: PriceTable
) -> Resolved:
    found = await find_base(services, caller, data.base_model_id, "/base_model_id")
    _check_seq_len(found, data.hyperparams.seq_len)
    hyperparams = _settled(data.hyperparams, said)
    plan = _growth(found, hyperparams)
    with priced(found):
        estimate = estimate_train(prices, plan.params_before, plan.params_after, hyperparams.training_tokens)
    return Resolved(TrainSpec(hyperparams=hyperparams, growth_plan=plan, base_model_name=found.name), estimate, found)


async def _finetune(services: Services, caller: Caller, data: FinetuneBody, prices: PriceTable) -> Resolved:
    found = await _model_to_finetune(services, caller, data)
    with plannable(found):
        family_of(found.config)
    hyperparams = _only(FinetuneHyperparams, data.hyperparams)
    _check_seq_len(found, hyperparams.seq_len)
    spec = FinetuneSpec(hyperparams=hyperparams, params=found.params, base_model_name=found.name)
    with priced(found):
        estimate = estimate_finetune(prices, found.params, spec.total_steps * spec.tokens_per_step)
    return Resolved(spec, estimate, found)


async def _contract(services: Services, caller: Caller, data: ContractBody, prices: PriceTable) -> Resolved:
    pointer = "/hyperparams/source_model_id"
    found = await find_own_model(services, caller, data.hyperparams.source_model_id, pointer)
    hyperparams = _only(ContractHyperparams, data.hyperparams)
    _check_seq_len(found, hyperparams.seq_len)
    plan = _contraction(found, hyperparams)
    settled = msgspec.structs.replace(hyperparams, num_layers_to_contract=plan.layers_to_contract)
    spec = ContractSpec(hyperparams=settled, contraction_plan=plan, base_model_name=found.name)
    with priced(found):
        estimate = estimate_contract(prices, plan.params_before)
    return Resolved(spec, estimate, found)


# -- finding models and datasets -------------------------------------------------------------------------------------


async def _model_to_finetune(services: Services, caller: Caller, data: FinetuneBody) -> FoundModel:
    named = {
        "/base_model_id": data.base_model_id,
        "/source_model_id": data.source_model_id,
        "/hyperparams/source_model_id": data.hyperparams.source_model_id,
    }
    given = {pointer: model_id for pointer, model_id in named.items() if model_id is not None}
    if not given:
        raise invalid([FieldError("/source_model_id", "name the model: source_model_id, or base_model_id")])
    (pointer, model_id), *others = given.items()
    if others:
        raise invalid([FieldError(other, f"the model is named by {pointer} already") for other, _ in others])
    if pointer == "/base_model_id":
        return await find_base(services, caller, model_id, pointer)
    return await find_own_model(services, caller, model_id, pointer)


# -- settings and plans ----------------------------------------------------------------------------------------------


def _only(kind: Any, settings: msgspec.Struct) -> Any:
    """The hyperparameters of a body without what names the model."""
    return kind(**{name: getattr(settings, name) for name in kind.__struct_fields__})


def _check_seq_len(found: FoundModel, seq_len: int) -> None:
    positions = found.config.get("max_position_embeddings")
    if isinstance(positions, int) and seq_len > positions:
        detail = f"is beyond the base model's {positions} positions"
        raise ProblemError("validation_failed", f"seq_len {detail}", [FieldError("/hyperparams/seq_len", detail)])


def _settled(hyperparams: Hyperparams, said: dict[str, Any]) -> Hyperparams:
    """Settings that fit each other. Raises ProblemError naming those that contradict; `said` is what the body holds."""
    settled, faults = settle(hyperparams, said)
    if faults:
        raise invalid([FieldError(f"/hyperparams/{name}", why) for name, why in faults.items()])
    return settled


def _growth(found: FoundModel, hyperparams: Hyperparams) -> GrowthPlan:
    with plannable(found):
        return plan_growth(
            found.config,
            growth_factor=hyperparams.growth_factor,
            layers_added=hyperparams.layers_added,
            axis=hyperparams.growth_axis,
            placement="even" if hyperparams.growth_placement == "even" else "upper",
            own_head=hyperparams.own_head,
        )


def _contraction(found: FoundModel, hyperparams: ContractHyperparams) -> ContractionPlan:
    layers, depth = hyperparams.num_layers_to_contract, found.config.get("num_hidden_layers")
    if layers is not None and isinstance(depth, int) and layers > depth:
        raise invalid([FieldError("/hyperparams/num_layers_to_contract", f"is beyond the model's {depth} layers")])
    with plannable(found):
        return plan_contraction(found.config, hyperparams.contraction_ratio, layers)


@contextmanager
def plannable(found: FoundModel) -> Iterator[None]:
    """Within, what the plans raise for a model that cannot be worked on becomes a problem.

    Raises ProblemError unsupported_architecture or validation_failed.
    """
    try:
        yield
    except UnsupportedArchitectureError as error:
        errors = [FieldError(found.pointer, str(error))]
        raise ProblemError("unsupported_architecture", str(error), errors) from error
    except ValueError as error:
        raise ProblemError("validation_failed", str(error), [FieldError("/hyperparams", str(error))]) from error


@contextmanager
def priced(found: FoundModel) -> Iterator[None]:
    """Within, a model or a number of tokens beyond what is priced becomes a ProblemError validation_failed."""
    try:
        yield
    except TooManyTokensError as error:
        raise invalid([FieldError("/hyperparams", str(error))]) from error
    except PriceError as error:
        raise ProblemError("validation_failed", str(error), [FieldError(found.pointer, str(error))]) from error
