"""What a person wants to know of a running job, kept up to date from its events."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusion_client.models import TERMINAL_STATUSES, Event

_REASONS = {
    "lost": "its worker was lost",
    "crash": "its worker reported a crash",
    "drain": "its worker was asked to leave",
}


@dataclass
class JobView:
    """The present of a job. `step` goes back when an interruption loses steps since the last checkpoint."""

    total_steps: int
    status: str = "queued"
    step: int = 0
    checkpoint_step: int = 0
    retries: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    steps_per_s: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """By the present speed; None while nothing is trained."""
        if not self.steps_per_s or self.status != "training":
            return None
        return max(0, self.total_steps - self.step) / self.steps_per_s

    @property
    def is_over(self) -> bool:
        return self.status in TERMINAL_STATUSES

    def apply(self, event: Event) -> str | None:
        """Take in one event; answers a sentence where a person should be told."""
        handler = _HANDLERS.get(event.type)
        return handler(self, event.data) if handler is not None else None

    def _queued(self, _: dict[str, Any]) -> str:
        return "queued"

    def _claimed(self, data: dict[str, Any]) -> str:
        self.status = "preparing"
        self.step = data.get("resume_step", 0)
        return f"a worker took the job and goes on from step {self.step}" if self.step else "a worker took the job"

    def _phase(self, data: dict[str, Any]) -> None:
        self.status = data["phase"]
        if self.status != "training":
            self.steps_per_s = self.tokens_per_s = None

    def _metrics(self, data: dict[str, Any]) -> None:
        self.status = "training"
        self.step = data["step"]
        self.loss = data["loss"]
        self.steps_per_s = data.get("throughput")
        self.tokens_per_s = data.get("tokens_per_s")

    def _grown(self, data: dict[str, Any]) -> str:
        before, after, difference = data["params_before"], data["params_after"], data["function_preservation"]
        return f"grown from {before:,} to {after:,} parameters; largest difference in any output: {difference:g}"

    def _evaluation(self, data: dict[str, Any]) -> str:
        if not data["turn"]:
            which = "of the base"
        elif data.get("turn_end", True):
            which = f"after turn {data['turn']}"
        else:
            which = f"in turn {data['turn']}, after cycle {data['cycle']}"
        return f"held-out perplexity {which}: {data['perplexity']:.3f}"

    def _checkpoint(self, data: dict[str, Any]) -> str:
        self.checkpoint_step = data["step"]
        return f"checkpoint at step {self.checkpoint_step}"

    def _checkpoint_lost(self, data: dict[str, Any]) -> str:
        return f"the checkpoint at step {data['step']} cannot be read; going on from the one before it"

    def _interrupted(self, data: dict[str, Any]) -> str:
        self.status = "preempted"
        self.retries = data.get("retries", self.retries)
        self.step = data.get("resume_step", 0)
        self.loss = self.steps_per_s = self.tokens_per_s = None
        reason = _REASONS.get(data.get("reason", ""), "it was interrupted")
        return f"interrupted: {reason}; it goes on from step {self.step} (retries: {self.retries})"

    def _quarantined(self, data: dict[str, Any]) -> str:
        return f"it lost {data['losses']} workers without progress and waits for the operator to look at it"

    def _stopped(self, _: dict[str, Any]) -> str:
        self.status = "stopped"
        return f"stopped at step {self.step}; it waits to be resumed or cancelled"

    def _resumed(self, _: dict[str, Any]) -> str:
        self.status = "queued"
        return "resumed"

    def _completed(self, _: dict[str, Any]) -> str:
        self.status = "completed"
        self.step = self.total_steps
        return "completed"

    def _failed(self, data: dict[str, Any]) -> str:
        self.status = "failed"
        return f"failed: {data.get('message', 'no reason was given')} ({data.get('code', 'unknown')})"

    def _cancelled(self, _: dict[str, Any]) -> str:
        self.status = "cancelled"
        return "cancelled"


_HANDLERS: dict[str, Callable[[JobView, dict[str, Any]], str | None]] = {
    "queued": JobView._queued,
    "claimed": JobView._claimed,
    "phase": JobView._phase,
    "metrics": JobView._metrics,
    "grown": JobView._grown,
    "evaluation": JobView._evaluation,
    "checkpoint": JobView._checkpoint,
    "checkpoint_lost": JobView._checkpoint_lost,
    "interrupted": JobView._interrupted,
    "quarantined": JobView._quarantined,
    "stopped": JobView._stopped,
    "resumed": JobView._resumed,
    "completed": JobView._completed,
    "failed": JobView._failed,
    "cancelled": JobView._cancelled,
}
