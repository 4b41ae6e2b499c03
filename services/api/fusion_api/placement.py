"""Which pool a job goes to: the smallest that has what it asks for, or at once a problem that says what there is."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from fusion_core.db.pool import Pool, queries
from fusion_core.job_spec import CustomerSpec
from fusion_http.problem_details import FieldError, ProblemError, invalid

MOST_POOLS = 1000

GpuClass = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
GpuCount = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class Compute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine that a job asks for: `gpu_count` GPUs of one class, at the least."""

    gpu_class: GpuClass
    gpu_count: GpuCount


class GpuPool(msgspec.Struct, frozen=True):
    """A pool whose workers have `gpu_count` GPUs each, with a trainer process on every one."""

    name: str
    gpu_class: str
    gpu_count: int


async def place(pool: Pool, usual: str, compute: Compute | None, spec: CustomerSpec) -> str:
    """The name of the pool for a job; `usual` is where jobs go that ask for nothing.

    Raises ProblemError no_fitting_pool, or validation_failed where the pool's processes cannot share a batch.
    """
    rows = [row async for row in queries.gpu_pools(pool, limit=MOST_POOLS)]
    pools = [GpuPool(row["name"], row["gpu_class"], row["gpu_count"]) for row in rows]
    found = smallest(pools, compute) if compute else next((one for one in pools if one.name == usual), None)
    if found is None:
        return usual
    batch = spec.hyperparams.batch_size
    if batch % found.gpu_count:
        detail = f"{batch} sequences cannot be shared by the {found.gpu_count} GPUs of {found.name}: choose a multiple"
        raise invalid([FieldError("/hyperparams/batch_size", detail)])
    return found.name


def smallest(pools: Sequence[GpuPool], compute: Compute) -> GpuPool:
    """The first of `pools`, which are sorted by size, that has the class and the count. Raises ProblemError."""
    of_class = [one for one in pools if one.gpu_class == compute.gpu_class]
    fitting = next((one for one in of_class if one.gpu_count >= compute.gpu_count), None)
    if fitting is not None:
        return fitting
    there = ", ".join(sorted({f"{one.gpu_count} x {one.gpu_class}" for one in of_class or pools})) or "no GPU at all"
    detail = f"no machine has {compute.gpu_count} x {compute.gpu_class}; what would fit: {there}"
    pointer = "/compute/gpu_count" if of_class else "/compute/gpu_class"
    raise ProblemError("no_fitting_pool", detail, [FieldError(pointer, detail)])
