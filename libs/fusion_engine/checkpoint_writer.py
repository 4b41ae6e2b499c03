"""Checkpoints behind training's back: copied to host memory at once, written and hashed by a thread meanwhile.

The copy is also what a run goes back to when its loss stays non-finite: the folder on disk may have been uploaded and
deleted by then.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from fusion_core.trainer_protocol import CheckpointSaved

from fusion_engine.checkpoint import CheckpointState, TrainedTensors, write_checkpoint


class CheckpointWriter:
    """Writes one checkpoint at a time. `emit` is called with each, from the thread, once its folder has its name."""

    def __init__(self, folder: Path, emit: Callable[[CheckpointSaved], None]) -> None:
        self._copy = _HostCopy()
        self._folder, self._emit = folder, emit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    @property
    def tensors(self) -> TrainedTensors:
        """Those taken last, in host memory."""
        return self._copy.tensors

    def take(self, tensors: TrainedTensors) -> None:
        """Copy the tensors; waits first while an earlier copy is still being written.

        Raises the OSError that the writing of that one ended with.
        """
        self._drain()
        self._copy.take(tensors)

    def write(self, state: CheckpointState, *, turn_end: bool) -> None:
        """Begin to write the tensors taken last, as the checkpoint that `state` describes."""
        self._drain()
        self._writing = self._thread.submit(self._write, state, turn_end)

    def close(self) -> None:
        """Wait for what is being written, and end the thread. Raises the OSError that writing ended with."""
        try:
            self._drain()
        finally:
            self._thread.shutdown()

    def _drain(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, state: CheckpointState, turn_end: bool) -> None:
        step = state.progress.step
        folder = self._folder / f"{step:08}"
        manifest = write_checkpoint(folder, state, self._copy.tensors)
        self._emit(CheckpointSaved(step=step, turn_end=turn_end, path=str(folder), manifest=manifest))


class _HostCopy:
    """Tensors in host memory as they were at one step. The buffers are reused, and page-locked beside a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self.tensors = TrainedTensors({}, {})

    def take(self, tensors: TrainedTensors) -> None:
        """Copy all of them; returns when the copies are whole."""
        self.tensors = TrainedTensors(
            {name: self._copied("parameter", name, tensor) for name, tensor in tensors.parameters.items()},
            {name: self._copied("moment", name, tensor) for name, tensor in tensors.moments.items()},
        )
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _copied(self, kind: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get((kind, name))
        if buffer is None:
            pinned = tensor.device.type == "cuda"
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
            self._buffers[kind, name] = buffer
        return buffer.copy_(tensor, non_blocking=True)
