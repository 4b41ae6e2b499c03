"""Rows as typed values."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import msgspec

from fusion_core.states import Status, public_status


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `jobs`: what callers read of it."""

    id: UUID
    account_id: UUID
    type: str
    idempotency_key: str | None
    request_sha256: bytes | None
    spec_version: int
    spec: dict[str, Any]
    base_model_id: UUID | None
    source_model_id: UUID | None
    dataset_id: UUID | None
    labels: dict[str, str]
    description: str | None
    price_version: int | None
    estimate: dict[str, Any] | None
    pool: str
    priority: int
    state: str
    phase: str | None
    lease_owner: UUID | None
    lease_epoch: int
    attempt_id: UUID | None
    cancel_requested_at: datetime | None
    stop_requested_at: datetime | None
    quarantined_at: datetime | None
    last_interruption: str | None
    retries: int
    crashes: int
    losses: int
    event_seq: int
    attempt_events: int
    last_checkpoint_step: int
    start_step: int
    resumed_from: UUID | None
    grown_at: datetime | None
    output_model_id: UUID | None
    error: dict[str, Any] | None
    result: dict[str, Any] | None
    gpu_seconds: float
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{field: record[field] for field in cls.__struct_fields__})

    @property
    def status(self) -> Status:
        return public_status(self.state, self.phase, self.last_interruption)
