"""The trainer's work as spans. It has no sockets of its own, so they are told from its events as these are read."""

from fusion_core import tracing
from fusion_core.tracing import Span
from fusion_core.trainer_protocol import Evaluation, Metrics, PhaseChanged, TrainerEvent


class PhaseSpans:
    """One span a phase and, within training, one a turn. Times are those at which the worker read the events."""

    def __init__(self) -> None:
        self._phase = Span()
        self._turn: Span | None = None
        self._training = False

    def on(self, event: TrainerEvent) -> None:
        if isinstance(event, PhaseChanged):
            self.close()
            self._phase = tracing.start(event.phase)
            self._training = event.phase == "training"
        elif self._training and isinstance(event, Metrics) and self._turn is None:
            self._turn = tracing.start("turn", parent=self._phase.traceparent)
        elif self._turn is not None and isinstance(event, Evaluation) and event.turn_end:
            self._turn.set(
                {"fusion.turn": event.turn, "fusion.step": event.step, "fusion.perplexity": event.perplexity}
            )
            self._end_turn()

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.end()
            self._turn = None

    def close(self) -> None:
        """Nothing goes on any more."""
        self._end_turn()
        self._phase.end()
        self._phase, self._training = Span(), False
