"""From events.jsonl to the database: follows the trainer, batches what customers see, hands the rest to the attempt."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt, WorkerEvent
from fusion_core.db.pool import Pool
from fusion_core.trainer_protocol import (
    CheckpointSaved,
    EventReader,
    ExportSaved,
    Finished,
    Outcome,
    PhaseChanged,
    Rejected,
    ShardSaved,
    Stopped,
    TrainerEvent,
)
from fusion_core.trainer_protocol import Metrics as TrainingPoint
from fusion_core.untrusted_files import inside

from fusion_worker.metrics import Metrics
from fusion_worker.phase_spans import PhaseSpans
from fusion_worker.retry import with_postgres
from fusion_worker.settings import WorkerSettings
from fusion_worker.stall_watch import StallWatch

POLL_S = 0.1


class EventsPump:
    """Reads every event once. What the attempt needs at its end is kept here."""

    def __init__(
        self,
        pool: Pool,
        settings: WorkerSettings,
        attempt: Attempt,
        run_dir: Path,
        on_checkpoint: Callable[[CheckpointSaved], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._attempt = attempt
        self._run_dir = run_dir
        self._reader = EventReader(run_dir)
        self._on_checkpoint = on_checkpoint
        self._metrics = metrics
        self._spans = PhaseSpans()
        self.export: ExportSaved | None = None
        self.shards: list[ShardSaved] = []
        self.outcome: Outcome | None = None

    async def run(self, trainer_ended: "asyncio.Task[int]", watch: StallWatch) -> None:
        """Follow until the trainer has ended, or should have, and everything it wrote has been taken.

        Never cancelled for the trainer's end: what has been read but not appended would be lost.
        Raises LeaseLostError and TrainerStalledError.
        """
        last = False
        try:
            while not last:
                last = trainer_ended.done()
                while await self.pump(watch):
                    pass
                last = last or watch.look()
                await asyncio.wait({trainer_ended}, timeout=POLL_S)
        finally:
            self._spans.close()

    async def pump(self, watch: StallWatch) -> bool:
        """Take some of what has been written since the last call; False: there was nothing.

        Checkpoints come after the events before them: what follows a checkpoint is computed again if this worker is
        lost, what precedes it is not.

        Raises UntrustedPathError for a path that leads out of the run.
        """
        public: list[WorkerEvent] = []
        checkpoints: list[CheckpointSaved] = []
        phase = None
        number = None
        for number, event in self._reader.read():
            watch.saw(event)
            self._spans.on(event)
            if isinstance(event, CheckpointSaved | ExportSaved | ShardSaved):
                inside(self._run_dir, Path(event.path))
            if isinstance(event, CheckpointSaved):
                checkpoints.append(event)
            elif isinstance(event, ExportSaved):
                self.export = event
            elif isinstance(event, ShardSaved):
                self.shards.append(event)
            elif isinstance(event, Finished | Stopped | Rejected):
                self.outcome = event
            else:
                if isinstance(event, TrainingPoint):
                    self._metrics.trained(event)
                phase = event.phase if isinstance(event, PhaseChanged) else phase
                public.append(_public(number, event))
        if public:

            async def append(connection: Any) -> None:
                await attempts.append_events(connection, self._attempt, public, phase)

            await with_postgres(self._pool, append, for_s=self._settings.isolation_limit_s)
        for saved in checkpoints:
            await self._on_checkpoint(saved)
        return number is not None


def _public(number: int, event: TrainerEvent) -> WorkerEvent:
    data: dict[str, Any] = msgspec.to_builtins(event)
    kind = data.pop("type")
    if kind == "metrics":
        data["ts"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return WorkerEvent(number, kind, data)
