"""What each format accepts, and the line and reason of what it does not."""

from pathlib import Path

import pytest
from fusion_data import formats, lines
from fusion_data.formats import Row, read_rows
from fusion_data.lines import Fault


@pytest.fixture
def read(tmp_path: Path):
    def read(content: bytes, filename: str = "data.jsonl") -> list[Row | Fault]:
        path = tmp_path / "object"
        path.write_bytes(content)
        rows = read_rows(path, filename)
        assert rows is not None
        return list(rows)

    return read


def test_jsonl_rows_carry_their_line_numbers(read):
    assert read(b'{"text": "one"}\n\n{"text": "two", "id": 7}\n') == [Row(1, "one"), Row(3, "two")]


def test_byte_order_mark_crlf_and_a_missing_last_newline_are_accepted(read):
    assert read(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "zw\xc3\xb6lf"}') == [Row(1, "one"), Row(2, "zwölf")]


def test_escapes_and_line_separators_inside_a_text_survive(read):
    assert read('{"text": "a\\n\\ud83d\\ude00\u2028b"}\n'.encode()) == [Row(1, "a\n😀\u2028b")]


@pytest.mark.parametrize(
    ("line", "code", "detail"),
    [
        (b"{'text': 'x'}", "invalid_row", "at column 2"),
        (b'{"txt": "x"}', "invalid_row", "missing required field `text`"),
        (b'{"text": 7}', "invalid_row", "Expected `str`, got `int`"),
        (b'{"text": null}', "invalid_row", "got `null`"),
        (b'["x"]', "invalid_row", "one object a line"),
        (b'"x"', "invalid_row", "got `str`"),
        (b"[", "invalid_row", "one object a line"),
        (b'{"text": "  "}', "invalid_row", "'text' is empty"),
        (b'{"text": "a\\u0000"}', "invalid_row", "NUL at character 2"),
        (b'{"text": "a\\ud800b"}', "invalid_row", "lone surrogate"),
        (b'{"text": "a", "x": NaN}', "invalid_row", "NaN"),
        (b'{"text": "a"} trailing', "invalid_row", "Extra data at column"),
        (b'{"text": "a", "x": ' + b"[" * 9000 + b"]" * 9000 + b"}", "invalid_row", "nested"),
        (b'{"text": "\xff"}', "invalid_encoding", "byte 11 of the line is not UTF-8"),
        (b'{"text": "\xed\xa0\x80"}', "invalid_encoding", "not UTF-8"),
        (b'{"text": "\x00"}', "invalid_encoding", "NUL at character 11"),
    ],
)
def test_a_bad_line_has_its_number_and_reason_and_the_next_is_still_read(read, line, code, detail):
    good, fault, after = read(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    assert (good, after) == (Row(1, "one"), Row(3, "two"))
    assert isinstance(fault, Fault)
    assert (fault.line, fault.code) == (2, code)
    assert detail in fault.detail


@pytest.mark.parametrize("tail", [b'{"text": "tw', b'{"text": "two"', b'{"te', b'{"text": "zw\xc3'])
def test_a_last_line_that_is_cut_off_is_a_truncated_upload(read, tail):
    fault = read(b'{"text": "one"}\n' + tail)[1]
    assert (fault.line, fault.code) == (2, "upload_truncated")
    assert read(b'{"text": "one"}\n' + tail + b"\n")[1].code != "upload_truncated"


def test_a_line_over_the_limit_is_one_fault_and_is_not_held_in_memory(read, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 64)
    fault, after = read(b'{"text": "' + b"x" * 1000 + b'"}\n{"text": "two"}\n')
    assert (fault.line, fault.code) == (1, "invalid_row")
    assert "64 bytes" in fault.detail
    assert after == Row(2, "two")


@pytest.mark.parametrize("content", ['{"text": "x"}\n'.encode("utf-16"), b"\x1f\x8b\x08\x00rest"])
def test_another_encoding_is_one_fault(read, content):
    (fault,) = read(content)
    assert (fault.line, fault.code) == (1, "invalid_encoding")
    assert "UTF-8" in fault.detail


def test_plain_text_rows_are_the_blocks_between_blank_lines(read):
    content = b"\n\none\r\nmore\r\n \t\r\n\r\n  two\n\nthree"
    assert read(content, "notes.TXT") == [Row(3, "one\nmore"), Row(7, "  two"), Row(9, "three")]


def test_a_paragraph_over_the_limit_is_one_fault_at_its_first_line(read, monkeypatch):
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 10)
    assert [type(row) for row in read(b"one\n\n123456\n123456\n123456\n\ntwo\n", "a.txt")] == [Row, Fault, Row]
    assert read(b"one\n\n123456\n123456\n", "a.txt")[1].line == 3


@pytest.mark.parametrize("filename", ["data.json", "data.csv", "data.parquet", "data", "jsonl"])
def test_unknown_formats_have_no_reader(tmp_path, filename):
    assert read_rows(tmp_path / "x", filename) is None
