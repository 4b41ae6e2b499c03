"""Rows as typed values."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import msgspec

from fusion_core.states import Status, public_status


class JobHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a list shows of a job: a row of `jobs` without its documents."""

    id: UUID
    account_id: UUID
    type: str
    base_model_id: UUID | None
    source_model_id: UUID | None
    dataset_id: UUID | None
    labels: dict[str, str]
    description: str | None
    state: str
    phase: str | None
    last_interruption: str | None
    retries: int
    last_checkpoint_step: int
    output_model_id: UUID | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{field: record[field] for field in cls.__struct_fields__})

    @property
    def status(self) -> Status:
        return public_status(self.state, self.phase, self.last_interruption)


class JobRow(JobHead, frozen=True, kw_only=True):
    """A row of `jobs`: what callers read of it."""

    idempotency_key: str | None
    request_sha256: bytes | None
    spec_version: int
    spec: dict[str, Any]
    price_version: int | None
    estimate: dict[str, Any] | None
    pool: str
    priority: int
    gpu_class: str | None
    gpu_count: int | None
    lease_owner: UUID | None
    lease_epoch: int
    attempt_id: UUID | None
    cancel_requested_at: datetime | None
    stop_requested_at: datetime | None
    quarantined_at: datetime | None
    crashes: int
    losses: int
    event_seq: int
    attempt_events: int
    start_step: int
    resumed_from: UUID | None
    grown_at: datetime | None
    error: dict[str, Any] | None
    result: dict[str, Any] | None
    gpu_seconds: float
    stopped_at: datetime | None
    traceparent: str | None
    history_deleted_at: datetime | None
