"""Every object's name. Epoch and attempt id are in each prefix an attempt writes: a zombie can overwrite nothing."""

from uuid import UUID

Id = UUID | str


def upload(account_id: Id, upload_id: Id, filename: str) -> str:
    """Where a presigned PUT writes. `filename` is already sanitised."""
    return f"tmp/{account_id}/{upload_id}/{filename}"


def base_model(base_model_id: Id) -> str:
    """Prefix of a base model's files."""
    return f"base-models/{base_model_id}"


def attempt(job_id: Id, epoch: int, attempt_id: Id) -> str:
    """Prefix of everything one attempt writes."""
    return f"jobs/{job_id}/{epoch}-{attempt_id}"


def checkpoint(attempt_prefix: str, step: int) -> str:
    return f"{attempt_prefix}/checkpoints/{step:09d}"


def export(attempt_prefix: str) -> str:
    return f"{attempt_prefix}/export"


def shards(attempt_prefix: str) -> str:
    return f"{attempt_prefix}/shards"


def pool_file(base_prefix: str, sha256: str) -> str:
    """A file of the rehearsal pool of a base whose own files lie below `base_prefix`: named by its content."""
    return f"{base_prefix}/pool/{sha256}.jsonl"
