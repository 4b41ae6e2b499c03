"""Rows as the Structs that operations answer."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

StructT = TypeVar("StructT", bound=msgspec.Struct)


def of_row(kind: type[StructT], row: Mapping[str, Any], **more: Any) -> StructT:
    """The fields of a Struct out of the columns of the same names; `more` are those that no column has."""
    return kind(**{field: row[field] for field in kind.__struct_fields__ if field not in more}, **more)
