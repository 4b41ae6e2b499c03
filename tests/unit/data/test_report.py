"""The report of a survey: counts that agree with one another, and what decides that a dataset fails."""

from pathlib import Path

import pytest
from fusion_core.trainer_protocol import IngestInput
from fusion_data import DatasetError, Limits, Report, survey_files
from fusion_data.duplicates import DuplicateCounter


@pytest.fixture
def survey(tmp_path: Path):
    """The report of files of the given contents, whether they make a dataset or not, and the failure's code."""

    def survey(files: dict[str, bytes], **options) -> tuple[Report, str | None]:
        inputs = []
        for number, (name, content) in enumerate(files.items()):
            (tmp_path / str(number)).write_bytes(content)
            inputs.append(IngestInput(str(tmp_path / str(number)), name))
        try:
            return survey_files(inputs, scratch=tmp_path, **options).report, None
        except DatasetError as error:
            return error.report, error.code

    return survey


def test_counts_of_a_good_dataset(survey):
    report, code = survey(
        {
            "a.jsonl": b'{"text": "abc", "id": 1}\n{"prompt": "p", "completion": "c"}\n{"text": "abc"}\n',
            "b.csv": b"prompt,chosen,rejected\nabcde,fgh,ijk\n",
        }
    )
    assert code is None
    assert (report.rows, report.duplicate_rows, report.text_bytes) == (4, 1, 3 + 2 + 3 + 11)
    assert report.rows_by_type == {"text": 2, "completion": 1, "preference": 1}
    assert report.lengths == {"4": 2, "2": 1, "16": 1}
    assert report.unused_fields == {"id": 1}
    assert [(file.file, file.format, file.rows, file.size) for file in report.files] == [
        ("a.jsonl", "jsonl", 3, 76),
        ("b.csv", "csv", 1, 37),
    ]


def test_a_dataset_of_preferences_alone_is_a_dataset(survey):
    report, code = survey({"a.csv": b"prompt,chosen,rejected\na,b,c\nd,e,f\n"})
    assert (code, report.rows_by_type) == (None, {"preference": 2})


def test_every_error_is_counted_by_its_rule_and_the_first_thousand_are_kept(survey):
    report, code = survey({"a.jsonl": b"oops\n" * 700 + b'{"text": ""}\n' * 800, "b.jsonl": b"[]\n"})
    assert code == "invalid_row"
    assert report.error_count == 1501
    assert report.errors_by_rule == {"invalid_json": 700, "empty_value": 800, "not_an_object": 1}
    assert [error.line for error in report.errors] == list(range(1, 1001))
    assert all(error.fix for error in report.errors)


def test_a_fatal_error_after_a_thousand_others_still_decides(survey):
    report, code = survey({"a.jsonl": b"oops\n" * 1500 + b'{"text": "a"}\n' * 3 + b'{"te'}, policy="skip")
    assert code == "upload_truncated"
    assert len(report.errors) == 1000
    assert (report.errors[0].rule, report.errors[0].line) == ("cut_off_file", 1504)


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_rules_of_the_whole_dataset(survey, policy):
    report, code = survey({"a.txt": b"a\n\nb\n\nc\n\nd"}, limits=Limits(rows=3), policy=policy)
    assert (code, report.errors_by_rule) == ("dataset_too_large", {"too_many_rows": 1})
    report, code = survey({"a.txt": b"a\n\nb", "b.txt": b"\n \n"}, policy=policy)
    assert (code, report.errors_by_rule, report.errors[0].file) == ("dataset_empty", {"empty_file": 1}, "b.txt")


def test_unknown_formats_are_all_named_before_anything_is_read(survey):
    report, code = survey({"a.doc": b"x", "b.txt": b"a\n\nb", "c.xls": b"x"})
    assert code == "unsupported_format"
    assert [error.file for error in report.errors] == ["a.doc", "c.xls"]


def test_names_of_unused_fields_are_bounded(survey):
    fields = ", ".join(f'"{"x" * 100}{n}": 1' for n in range(5))
    content = b"".join(b'{"text": "a", "f%d": 1}\n' % n for n in range(200))
    report, _ = survey({"a.jsonl": content + f'{{"text": "a", {fields}}}\n'.encode()})
    assert len(report.unused_fields) == 100
    assert max(map(len, report.unused_fields)) <= 64


@pytest.mark.parametrize("in_memory", [7, 10_000])
def test_duplicates_are_counted_exactly_on_disk_and_in_memory(tmp_path, in_memory):
    digests = [(n * 0x9E3779B97F4A7C15) % 2**64 for n in range(500)]
    with DuplicateCounter(tmp_path, in_memory) as counter:
        for digest in [*digests, *digests[:120], digests[0], 0, 2**64 - 1, 0]:
            counter.add(digest)
        assert counter.count() == 120 + 1 + 2  # digests[0] is 0 itself
    assert not list(tmp_path.iterdir())
