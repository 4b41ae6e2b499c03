"""How a run ends early: exceptions that `run.execute` turns into the outcome event."""

from fusion_core.trainer_protocol import StopReason


class RejectedError(Exception):
    """Bad input that no retry can mend. `code` is one of fusion_core.problems; `errors` names every fault found."""

    def __init__(self, code: str, message: str, errors: tuple[dict[str, object], ...] = ()) -> None:
        super().__init__(message)
        self.code, self.message, self.errors = code, message, errors


class StoppedError(Exception):
    """control.json asked to stop; what is worth keeping has been saved. `step` is the last step done."""

    def __init__(self, step: int, reason: StopReason) -> None:
        super().__init__(f"stopped ({reason}) after step {step}")
        self.step: int = step
        self.reason: StopReason = reason
