"""CSV: a header, quoting by RFC 4180, and the line and field of everything else."""

import json

import pytest
from fusion_data import BadRow, Limits, Row


def texts(rows):
    return [json.loads(row.encoded) if isinstance(row, Row) else [fault.rule for fault in row.faults] for row in rows]


def test_records_become_rows_at_the_line_where_they_begin(read):
    content = b'\xef\xbb\xbfid,text\r\n1,one\r\n\r\n2,"two, ""quoted""\r\nand more"\r\n3,three'
    rows = read(content, "a.csv")
    assert texts(rows) == [{"text": "one"}, {"text": 'two, "quoted"\nand more'}, {"text": "three"}]
    assert [row.line for row in rows] == [2, 4, 6]
    assert rows[0].unused == {"id"}


def test_every_type_of_row(read):
    assert texts(read(b"prompt,completion\np,c\n", "a.csv")) == [{"prompt": "p", "completion": "c"}]
    assert texts(read(b"rejected,prompt,chosen\nr,p,c\n", "a.csv")) == [{"prompt": "p", "chosen": "c", "rejected": "r"}]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    cells = [json.dumps(messages).replace('"', '""'), '[{""name"": ""f""}]']
    content = 'messages,tools\n"{}","{}"\n"{}",\n'.format(*cells, cells[0]).encode()
    assert texts(read(content, "a.csv")) == [{"messages": messages, "tools": [{"name": "f"}]}, {"messages": messages}]


@pytest.mark.parametrize(
    ("content", "rule", "words"),
    [
        (b"a,b\n1,2\n", "missing_columns", "'a', 'b'"),
        (b"prompt\np\n", "missing_columns", "'prompt'"),
        (b"text,text\na,b\n", "bad_header", "'text' stands twice"),
        (b"text,\na,b\n", "bad_header", "no name"),
        (b"prompt;completion\na;b\n", "bad_header", "';'"),
        (b"prompt\tcompletion\na\tb\n", "bad_header", "'\\t'"),
        (b"te\xffxt\na\n", "bad_header", "0xff"),
        (b'"text\na\n', "bad_header", "ends within"),
        (b"text," + b",".join(b"c%d" % n for n in range(1000)) + b"\n", "too_many_columns", "1001"),
        (b'text\n"open\nand more', "cut_off_file", "quoted field"),
        (b"prompt,completion\na,b\nc", "cut_off_file", "middle of this record"),
    ],
)
def test_faults_of_the_whole_file(read, content, rule, words):
    *_, last = read(content, "a.csv")
    assert isinstance(last, BadRow)
    assert last.is_fatal
    assert last.faults[0].rule == rule
    assert words in last.faults[0].detail


@pytest.mark.parametrize(
    ("record", "rule", "column", "pointer"),
    [
        (b"1,p,c,x", "csv_columns", None, None),
        (b"1", "csv_columns", None, None),
        (b'1,"p"x,c', "csv_syntax", None, None),
        (b"1,,c", "missing_field", 2, "/prompt"),
        (b"1,p,  ", "empty_value", 3, "/completion"),
        (b"1,p,\xff", "invalid_utf8", 5, None),
        (b"1,p,\x00", "nul_character", 5, None),
    ],
)
def test_faults_of_a_record_have_its_line_and_field(read, record, rule, column, pointer):
    good, bad, after = read(b'id,prompt,completion\n1,"p\n",c\n' + record + b"\n1,p,c\n", "a.csv")
    assert isinstance(good, Row)
    (fault,) = bad.faults
    assert (fault.rule, fault.line, fault.column, fault.pointer) == (rule, 4, column, pointer)
    assert not bad.is_fatal
    assert after.line == 5


def test_cells_that_must_be_json_say_where_they_are_not(fault):
    found = fault(b'id,messages\n1,"[{""role"": 1, ""role"": 2}]"\n', "a.csv")
    assert (found.rule, found.line, found.column, found.pointer) == ("duplicate_key", 2, 2, "/messages/0/role")
    assert fault(b"id,messages\n1,hello\n", "a.csv").rule == "invalid_json"


def test_a_quote_that_is_never_closed_does_not_swallow_the_file_into_memory(read):
    content = b'text\none\n"two\n' + b"more\n" * 1000
    good, bad = read(content, "a.csv", Limits(line_bytes=100))
    assert texts([good]) == [{"text": "one"}]
    assert (bad.faults[0].rule, bad.is_fatal) == ("open_quote", True)
    assert "begins in line 3" in bad.faults[0].detail


def test_a_field_of_the_full_length_is_read(read):
    assert texts(read(b"text\n" + b"x" * 200_000 + b"\n", "a.csv")) == [{"text": "x" * 200_000}]
    assert texts(read(b"text\n" + b"x" * 101 + b"\na\n", "a.csv", Limits(line_bytes=100))) == [
        ["line_too_long"],
        {"text": "a"},
    ]


def test_an_empty_file_and_a_header_alone_have_no_rows(read):
    assert read(b"", "a.csv") == read(b"text\n", "a.csv") == []
