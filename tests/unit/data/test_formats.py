"""What JSONL and plain text accept, and the line and reason of what they do not."""

import pytest
from fusion_data import BadRow, Limits, Row


def shown(rows):
    """Texts with their lines; for bad rows, the rules they break."""
    return [
        (row.line, row.content.decode()) if isinstance(row, Row) else [fault.rule for fault in row.faults]
        for row in rows
    ]


def test_jsonl_rows_carry_their_line_numbers(read):
    assert shown(read(b'{"text": "one"}\n\n{"text": "two", "id": 7}\n')) == [(1, "one"), (3, "two")]


def test_byte_order_mark_crlf_and_a_missing_last_newline_are_accepted(read):
    rows = read(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "zw\xc3\xb6lf"}')
    assert shown(rows) == [(1, "one"), (2, "zwölf")]


def test_escapes_and_line_separators_inside_a_text_survive(read):
    text = "a\n😀\u2028b \\ud800"
    (row,) = read('{"text": "a\\n\\ud83d\\ude00\u2028b \\\\ud800"}\n'.encode())
    assert row.content.decode() == text


@pytest.mark.parametrize(
    ("line", "rule", "column", "pointer", "detail"),
    [
        (b"{'text': 'x'}", "invalid_json", 2, None, "property name"),
        (b'{"txt": "x"}', "unknown_row_type", None, "", "'txt'"),
        (b'{"text": 7}', "wrong_type", None, "/text", "a number, not a string"),
        (b'{"text": null}', "missing_field", None, "/text", "no value"),
        (b'["x"]', "not_an_object", None, "", "an array"),
        (b'"x"', "not_an_object", None, "", "a string"),
        (b"[", "invalid_json", 2, None, "expecting value"),
        (b'{"text": "  "}', "empty_value", None, "/text", "empty"),
        (b'{"text": "a\\u0000"}', "nul_character", 12, None, "NUL"),
        (b'{"text": "a\\ud800b"}', "lone_surrogate", 12, None, "\\ud800"),
        (b'{"text": "a\\ude00b"}', "lone_surrogate", 12, None, "\\ude00"),
        (b'{"text": "a", "x": [NaN]}', "invalid_json", None, "/x/0", "NaN"),
        (b'{"text": "a", "x": {"a~/b": 1, "a~/b": 2}}', "duplicate_key", None, "/x/a~0~1b", "twice"),
        (b'{"text": "a"} trailing', "invalid_json", 15, None, "extra data"),
        (b'{"text": "a", "x": ' + b"[" * 9000 + b"]" * 9000 + b"}", "too_deep", None, None, "64"),
        (b'{"text": "a", "x": ' + b"[" * 70 + b"]" * 70 + b"}", "too_deep", None, "/x" + "/0" * 63, "64"),
        (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", "invalid_json", None, None, "digits"),
        (b'{"text": "\xff"}', "invalid_utf8", 11, None, "0xff"),
        (b'{"text": "\xed\xa0\x80"}', "invalid_utf8", 11, None, "0xed"),
        (b'{"text": "\x00"}', "nul_character", 11, None, "NUL"),
    ],
)
def test_a_bad_line_has_its_place_and_reason_and_the_next_is_still_read(read, line, rule, column, pointer, detail):
    good, bad, after = read(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    assert shown([good, after]) == [(1, "one"), (3, "two")]
    assert isinstance(bad, BadRow)
    (fault,) = bad.faults
    assert (fault.rule, fault.line, fault.column, fault.pointer) == (rule, 2, column, pointer)
    assert detail in fault.detail
    assert not bad.is_fatal


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("bad", [b"\xff", b"\x00", b"\\ud800", b"\\u0000"])
def test_byte_offsets_lead_to_the_byte(fault, start, bad):
    content = start + '{"text": "zwölf"}\r\n{"text": "ö'.encode() + bad + b'"}\n'
    found = fault(content)
    assert content[found.offset :].startswith(bad)
    assert (found.line, found.column) == (2, 12)


@pytest.mark.parametrize("tail", [b'{"text": "tw', b'{"text": "two"', b'{"te', b'{"text": "zw\xc3'])
def test_a_last_line_that_is_cut_off_cannot_be_skipped(read, tail):
    bad = read(b'{"text": "one"}\n' + tail)[1]
    assert bad.is_fatal
    assert shown([bad]) == [["cut_off_file"]]
    assert shown(read(b'{"text": "one"}\n' + tail + b"\n")[1:]) != [["cut_off_file"]]


def test_a_line_over_the_limit_is_one_fault_and_the_next_is_still_read(read):
    limits = Limits(line_bytes=64)
    rows = read(b'{"text": "' + b"x" * 1000 + b'"}\r\n{"text": "two"}\n', "a.jsonl", limits)
    assert shown(rows) == [["line_too_long"], (2, "two")]
    assert "1014 bytes; the limit is 64" in rows[0].faults[0].detail
    exact = b'{"text": "' + b"x" * 52 + b'"}'
    assert len(exact) == 64
    ends = (b"", b"\n", b"\r\n")
    assert [len(read(exact + end, "a.jsonl", limits)[0].content) for end in ends] == [52] * 3
    assert [shown(read(b" " + exact + end, "a.jsonl", limits)) for end in ends] == [[["line_too_long"]]] * 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_one_fault(fault, encoding):
    found = fault('{"text": "x"}\n'.encode(encoding))
    assert (found.line, found.rule) == (1, "wrong_encoding")


def test_plain_text_rows_are_the_blocks_between_blank_lines(read):
    content = b"\n\none\r\nmore\r\n \t\r\n\r\n  two\n\nthree"
    assert shown(read(content, "notes.TXT")) == [(3, "one\nmore"), (7, "  two"), (9, "three")]


def test_a_paragraph_over_the_limit_is_one_fault_at_its_first_line(read):
    content = b"one\n\n123456\n123456\n123456\n\ntwo\n"
    rows = read(content, "a.txt", Limits(line_bytes=10))
    assert shown(rows) == [(1, "one"), ["line_too_long"], (7, "two")]
    assert rows[1].faults[0].line == 3
    assert shown(read(b"one\n\n123\n123456", "a.txt", Limits(line_bytes=10)))[1] == (3, "123\n123456")


def test_a_bad_line_spoils_its_whole_paragraph(read):
    rows = read(b"one\nt\xffwo\nthree\x00\n\nfour\n", "a.txt")
    assert shown(rows) == [["invalid_utf8", "nul_character"], (5, "four")]
    assert [(f.line, f.column, f.offset) for f in rows[0].faults] == [(2, 2, 5), (3, 6, 14)]


def test_a_file_without_blank_lines_and_with_nothing_but_bad_lines_is_reported_in_parts(read):
    assert [len(row.faults) for row in read(b"\xff\n" * 250, "a.txt")] == [100, 100, 50]


@pytest.mark.parametrize("filename", ["data.json", "data.xlsx", "data", "jsonl", "data.gz", "data.jsonl.bz2"])
def test_unknown_formats_have_no_reader(fault, filename):
    assert fault(b"x", filename).rule == "unknown_format"
