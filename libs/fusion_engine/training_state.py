"""All that training changes, kept together: copied between steps, written behind training's back, and put back."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import CHECKPOINT_FORMAT_VERSION, CheckpointSaved

from fusion_engine.checkpoint import CheckpointState, Parameters, TrainedTensors, read_tensors
from fusion_engine.checkpoint_writer import CheckpointWriter
from fusion_engine.progress import Progress
from fusion_engine.reproducibility import random_states, restore_random_states
from fusion_engine.sharding import from_main, gathered, put_back


class TrainingState:
    """Parameters, moments, random states and progress of one training. All processes call each method together."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        hyperparams: Hyperparams,
        parameters: Parameters,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        emit: Callable[[CheckpointSaved], None],
    ) -> None:
        self._identity, self._hyperparams = identity, hyperparams
        self._parameters, self._optimizer, self._accelerator = parameters, optimizer, accelerator
        self._writer = CheckpointWriter(folder, emit)
        self._copied: CheckpointState | None = None

    def load(self, folder: Path, state: CheckpointState) -> None:
        """Go to a checkpoint. Raises CheckpointError if a part is missing."""
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        put_back(self._parameters, self._optimizer, read_tensors(folder, shapes))
        self._restore_random(state)

    def copy(self, progress: Progress) -> CheckpointState:
        """Remember this moment in host memory of the main process, for `restore_copy`."""
        self._copied = CheckpointState(
            format_version=CHECKPOINT_FORMAT_VERSION,
            identity=self._identity,
            hyperparams=self._hyperparams,
            world_size=self._accelerator.num_processes,
            progress=progress.snapshot(),
            random_states=tuple(gather_object([random_states(self._accelerator.device)])),
        )
        tensors = gathered(TrainedTensors.of(self._parameters, self._optimizer))
        if self._accelerator.is_main_process:
            self._writer.take(tensors)
        return self._copied

    def save(self, progress: Progress, *, turn_end: bool) -> None:
        """Copy, and have the copy written as a checkpoint while training goes on.

        Raises the OSError that the writing of the checkpoint before ended with.
        """
        state = self.copy(progress)
        if self._accelerator.is_main_process:
            self._writer.write(state, turn_end=turn_end)

    def restore_copy(self) -> Progress:
        """Go back to the moment of the last `copy` or `save`; returns its progress, not to be changed."""
        assert self._copied is not None, "nothing has been copied"
        tensors = from_main(self._writer.tensors, self._parameters, self._accelerator)
        put_back(self._parameters, self._optimizer, tensors)
        self._restore_random(self._copied)
        return self._copied.progress

    def gather_into(self, parameters: Parameters) -> None:
        """Put the trained tensors, whole, into `parameters` on the main process, where they are other objects."""
        for name, parameter in parameters.items():
            if parameter is not self._parameters[name]:
                whole = gathered(TrainedTensors({name: self._parameters[name].data}, {})).parameters[name]
                parameter.data = whole.cpu() if self._accelerator.is_main_process else whole.new_empty(0)

    def close(self) -> None:
        """Wait until the last checkpoint is on disk. Raises the OSError that writing it ended with."""
        self._writer.close()

    def _restore_random(self, state: CheckpointState) -> None:
        restore_random_states(state.random_states[self._accelerator.process_index], self._accelerator.device)
