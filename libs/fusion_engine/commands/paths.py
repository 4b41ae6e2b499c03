"""The paths that a person names: DST must not exist yet, and what is read must."""

from collections.abc import Iterable
from pathlib import Path

from fusion_engine.outcomes import RejectedError


def check_paths(destination: Path, read: Iterable[Path] = ()) -> None:
    """Raises RejectedError: validation_failed for a DST that exists, inputs_unavailable naming every missing file."""
    if destination.exists():
        raise RejectedError("validation_failed", f"{destination} exists; name a folder that does not")
    missing = [str(path) for path in read if not path.exists()]
    if missing:
        raise RejectedError("inputs_unavailable", f"there is no such file: {', '.join(missing)}")


def work_folder_of(destination: Path) -> Path:
    """DST.run, where a job keeps what it needs to go on after an interruption."""
    return destination.with_name(f"{destination.name}.run")
