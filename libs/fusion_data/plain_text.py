"""Plain text: a row a paragraph."""

from collections.abc import Iterator

from fusion_data.faults import BadRow, Fault, bad_row
from fusion_data.limits import Limits
from fusion_data.lines import BadLine, read_lines
from fusion_data.normalise import normalise
from fusion_data.rows import Row
from fusion_data.source import Source

_FAULTS_PER_PARAGRAPH = 100  # after which it ends, so that a file without blank lines stays out of memory


class _Paragraph:
    """Lines between blank lines. One bad line makes the paragraph bad; too long a one is counted and not kept."""

    def __init__(self, line: int, limits: Limits) -> None:
        self._line = line
        self._limits = limits
        self._lines: list[str] = []
        self._faults: list[Fault] = []
        self._bytes = 0

    def add(self, content: str) -> None:
        self._bytes += len(content.encode()) + 1
        if self._bytes <= self._limits.line_bytes + 1:
            self._lines.append(content)

    def add_faults(self, row: BadRow) -> None:
        self._faults += row.faults

    @property
    def is_hopeless(self) -> bool:
        return len(self._faults) >= _FAULTS_PER_PARAGRAPH

    def finish(self) -> Row | BadRow:
        size, limit = self._bytes - 1, self._limits.line_bytes
        if self._faults:
            return BadRow(tuple(self._faults))
        if size > limit:
            return bad_row("line_too_long", self._line, f"the paragraph has {size} bytes; the limit is {limit}")
        return normalise({"text": "\n".join(self._lines)}, self._line, self._limits)


def read_plain_text(source: Source) -> Iterator[Row | BadRow]:
    """Yield a row a block of lines; one or more lines of white space alone are between them.

    Raises FileError or OSError.
    """
    paragraph: _Paragraph | None = None
    with source.open() as stream:
        for line in read_lines(source, stream):
            if isinstance(line, BadLine):
                paragraph = paragraph or _Paragraph(line.number, source.limits)
                paragraph.add_faults(line.row)
                if paragraph.is_hopeless:
                    yield paragraph.finish()
                    paragraph = None
            elif line.content and not line.content.isspace():
                paragraph = paragraph or _Paragraph(line.number, source.limits)
                paragraph.add(line.content)
            elif paragraph is not None:
                yield paragraph.finish()
                paragraph = None
    if paragraph is not None:
        yield paragraph.finish()
