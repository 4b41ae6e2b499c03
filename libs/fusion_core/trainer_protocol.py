"""The run directory: the only place where the worker daemon and a trainer meet (docs/trainer-protocol.md).

    run.json       written once by the daemon before launch
    events.jsonl   appended by the trainer, one JSON object a line; the line number is the event's local number
    control.json   replaced by rename by the daemon: {"stop": "drain" | "cancel" | "stop"}

The last event is the outcome: finished, stopped or rejected. An exit without one is a crash. No credentials, no
sockets, no times in exported files.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import msgspec

from fusion_core.contraction_plan import ContractionPlan
from fusion_core.growth_plan import GrowthPlan
from fusion_core.job_spec import BadRowPolicy, ContractHyperparams, FinetuneHyperparams, Hyperparams
from fusion_core.untrusted_files import UntrustedPathError, open_untrusted

PROTOCOL_VERSION = 1
CHECKPOINT_FORMAT_VERSION = 2
RUN_FILE, EVENTS_FILE, CONTROL_FILE, MANIFEST_FILE = "run.json", "events.jsonl", "control.json", "manifest.json"
REPORT_FILE = "report.json"  # of an ingest attempt, beside its events: the whole validation report

EVENTS_CHUNK_BYTES = 4 * 2**20  # what the daemon takes at once, and so the longest line

StopReason = Literal["drain", "cancel", "stop"]
NoticeCode = Literal["micro_batch_halved", "activation_checkpointing", "rolled_back", "padding"]
Phase = Literal["preparing", "diagnosing", "growing", "training", "checkpointing", "exporting"]


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a manifest: its path relative to the manifest's folder, its size in bytes and its SHA-256 in hex."""

    rel: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Raises ValueError for a path that leads out of the folder."""
        if not self.rel or self.rel.startswith("/") or ".." in PurePosixPath(self.rel).parts:
            raise ValueError(f"{self.rel!r} is not a path below the manifest's folder")


class Manifest(msgspec.Struct, frozen=True):
    """The files of a checkpoint, base model, model or dataset, sorted by `rel`."""

    files: tuple[FileEntry, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


# -- run.json ------------------------------------------------------------------------------------------------------


class EngineRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What run.json says for every kind of work of the engine. All paths are local and absolute.

    Shards are JSONL, one row a line: {"text"}, {"prompt", "completion"} or {"messages", "tools"?}.
    """

    job_id: str
    lease_epoch: int
    base_dir: str
    base_name: str = ""
    output_name: str = ""
    dataset_name: str = ""
    train_shards: tuple[str, ...] = ()
    heldout_shards: tuple[str, ...] = ()
    rehearsal_files: tuple[str, ...] = ()  # the catalog's own rehearsal text, rows like those of shards
    pool_files: tuple[str, ...] = ()  # sampled from the base at temperature 1: JSONL, {"ids": [...]} a line
    checkpoint_dir: str | None = None  # a verified checkpoint to resume from
    checkpoint_every_s: float = 120.0
    metrics_every_s: float = 1.0
    num_processes: int = 1
    threads: int = 1
    protocol_version: int = PROTOCOL_VERSION


class TrainRun(EngineRun, frozen=True, kw_only=True, tag="train", forbid_unknown_fields=True):
    """run.json of a training attempt."""

    hyperparams: Hyperparams
    growth_plan: GrowthPlan


class FinetuneRun(EngineRun, frozen=True, kw_only=True, tag="finetune", forbid_unknown_fields=True):
    """run.json of a fine-tuning attempt."""

    hyperparams: FinetuneHyperparams


class ContractRun(EngineRun, frozen=True, kw_only=True, tag="contract", forbid_unknown_fields=True):
    """run.json of a contraction attempt; `base_dir` is the source model, and shards may be absent."""

    hyperparams: ContractHyperparams
    contraction_plan: ContractionPlan


class SampleRun(EngineRun, frozen=True, kw_only=True, tag="sample", forbid_unknown_fields=True):
    """run.json of an attempt to sample a rehearsal pool from `base_dir`; its shards are pool files."""

    rows: int
    seq_len: int
    seed: int


class IngestInput(msgspec.Struct, frozen=True):
    path: str
    filename: str


class IngestRun(msgspec.Struct, frozen=True, kw_only=True, tag="ingest", forbid_unknown_fields=True):
    """run.json of a dataset ingest attempt. `policy` says what a bad row does: fail the dataset, or be left out."""

    job_id: str
    lease_epoch: int
    inputs: tuple[IngestInput, ...]
    policy: BadRowPolicy = "fail"
    heldout_percent: int = 2
    shard_bytes: int = 64 * 1024 * 1024
    protocol_version: int = PROTOCOL_VERSION


Run = TrainRun | FinetuneRun | ContractRun | SampleRun | IngestRun

# -- events.jsonl --------------------------------------------------------------------------------------------------


class PhaseChanged(msgspec.Struct, frozen=True, kw_only=True, tag="phase", tag_field="type"):
    phase: Phase
    message: str = ""


class Metrics(msgspec.Struct, frozen=True, kw_only=True, tag="metrics", tag_field="type"):
    """One point of the training curve. throughput is steps per second; the fields are those of GET metrics."""

    step: int
    cycle: int
    loss: float
    lr: float
    throughput: float
    tokens_per_s: float
    grad_norm: float
    vram_gb: float = 0.0
    phase: str = "train"


class Grown(msgspec.Struct, frozen=True, kw_only=True, tag="grown", tag_field="type"):
    """function_preservation is max |logits(base) - logits(grown)| over the guard's prompts, in fp32."""

    params_before: int
    params_after: int
    function_preservation: float


class Diagnosed(msgspec.Struct, frozen=True, kw_only=True, tag="diagnosed", tag_field="type"):
    """Where the diagnosis placed new capacity; `scores` has a figure for each old block, larger means shorter of it."""

    scores: tuple[float, ...]
    new_after: tuple[int, ...]


class Notice(msgspec.Struct, frozen=True, kw_only=True, tag="notice", tag_field="type"):
    """Something the customer should know that did not stop the run, such as a micro-batch halved for memory."""

    code: NoticeCode
    message: str


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, tag="evaluation", tag_field="type"):
    """Held-out perplexity, and the perplexity of text sampled from the base; turn 0 is the base before training."""

    step: int
    turn: int
    perplexity: float
    tokens: int
    cycle: int = 0
    turn_end: bool = True
    retention_perplexity: float | None = None
    retention_tokens: int = 0


class CheckpointSaved(msgspec.Struct, frozen=True, kw_only=True, tag="checkpoint_saved", tag_field="type"):
    """`path` is a complete, fsynced, renamed folder inside the run directory; its manifest.json lists its files."""

    step: int
    turn_end: bool
    path: str
    manifest: Manifest


class ExportSaved(msgspec.Struct, frozen=True, kw_only=True, tag="export_saved", tag_field="type"):
    path: str
    manifest: Manifest
    params: int


class ShardSaved(msgspec.Struct, frozen=True, kw_only=True, tag="shard_saved", tag_field="type"):
    path: str
    split: Literal["train", "heldout"]
    rows: int
    file: FileEntry


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished", tag_field="type"):
    """The work is done. `result` is the public result summary of a train job, or the counts of an ingest."""

    result: dict[str, object]


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag="stopped", tag_field="type"):
    """The trainer obeyed control.json; what it saved is in the checkpoint events before this one."""

    step: int
    reason: StopReason


class Rejected(msgspec.Struct, frozen=True, kw_only=True, tag="rejected", tag_field="type"):
    """No retry can mend this: bad input. `code` is one of fusion_core.problems; `errors` name every fault found."""

    code: str
    message: str
    errors: tuple[dict[str, object], ...] = ()


TrainerEvent = (
    PhaseChanged
    | Metrics
    | Grown
    | Diagnosed
    | Notice
    | Evaluation
    | CheckpointSaved
    | ExportSaved
    | ShardSaved
    | Finished
    | Stopped
    | Rejected
)
Outcome = Finished | Stopped | Rejected


class Control(msgspec.Struct, frozen=True):
    stop: StopReason


_event_decoder = msgspec.json.Decoder(TrainerEvent)
_run_decoder: msgspec.json.Decoder[Run] = msgspec.json.Decoder(Run)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` so that a reader sees the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o644)  # daemon and trainer may be two users; who may pass the folder is its own matter
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def write_run(run_dir: Path, run: Run) -> None:
    write_atomic(run_dir / RUN_FILE, msgspec.json.encode(run))


def read_run(run_dir: Path) -> Run:
    """Raises FileNotFoundError or msgspec.ValidationError."""
    return _run_decoder.decode((run_dir / RUN_FILE).read_bytes())


def write_control(run_dir: Path, stop: StopReason) -> None:
    write_atomic(run_dir / CONTROL_FILE, msgspec.json.encode(Control(stop)))


def read_control(run_dir: Path) -> StopReason | None:
    try:
        content = (run_dir / CONTROL_FILE).read_bytes()
    except FileNotFoundError:
        return None
    return msgspec.json.decode(content, type=Control).stop


class EventWriter:
    """The trainer's end of events.jsonl: every event is one flushed line."""

    def __init__(self, run_dir: Path) -> None:
        self._file: IO[bytes] = (run_dir / EVENTS_FILE).open("ab", buffering=0)

    def emit(self, event: TrainerEvent) -> None:
        self._file.write(msgspec.json.encode(event) + b"\n")

    def close(self) -> None:
        self._file.close()


class EventReader:
    """The daemon's end: yields (local number, event) for each complete line once; a half-written line waits."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / EVENTS_FILE
        self._offset = 0
        self._number = 0

    def read(self) -> Iterator[tuple[int, TrainerEvent]]:
        """The next few megabytes; nothing when there is no complete line. Raises UntrustedPathError."""
        try:
            with open_untrusted(self._path) as file:
                file.seek(self._offset)
                content = file.read(EVENTS_CHUNK_BYTES)
        except FileNotFoundError:
            return
        end = content.rfind(b"\n") + 1
        if end == 0 and len(content) == EVENTS_CHUNK_BYTES:
            raise UntrustedPathError(f"{self._path} has a line of more than {EVENTS_CHUNK_BYTES} bytes")
        self._offset += end
        for line in content[:end].splitlines():
            self._number += 1
            yield self._number, _event_decoder.decode(line)
