"""Times as the API shows them: UTC, whole seconds, with Z."""

from datetime import UTC, datetime


def shown(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def shown_or_none(moment: datetime | None) -> datetime | None:
    return None if moment is None else shown(moment)
