"""Times as the API shows and takes them: UTC, whole seconds, with Z."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from fusion_http.problem_details import FieldError, invalid

Time = Annotated[datetime, msgspec.Meta(tz=True)]  # in the document: a string in the format date-time
LONGEST = timedelta(days=36_525)


def shown(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def shown_or_none(moment: datetime | None) -> datetime | None:
    return None if moment is None else shown(moment)


def check_expiry(expires_at: datetime | None, advice: str) -> None:
    """Raises ProblemError for a time that is past, which is a slip of the pen, or that no calendar may hold.

    `advice` says what to do where a past time is meant.
    """
    if expires_at is None:
        return
    if expires_at <= datetime.now(UTC):
        raise invalid([FieldError("/expires_at", f"is past; {advice}")])
    if expires_at > datetime.now(UTC) + LONGEST:
        raise invalid([FieldError("/expires_at", "is more than a hundred years ahead; null means never")])
