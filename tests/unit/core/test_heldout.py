"""The rule by which rows are held out, on the platform and by hand."""

from fusion_core.heldout import is_held_out, row_hash


def test_the_rule_stays_what_it_was() -> None:
    """A dataset's next version must hold out the rows that the last one did."""
    assert row_hash(b'{"text": "a"}') == 0xFCF7579B2DB13F7E
    rows = [str(number).encode() for number in range(20_000)]
    assert 300 < sum(is_held_out(row_hash(row), 2) for row in rows) < 500
    assert not is_held_out(0, 0)
    assert is_held_out(2**64 - 1, 100)
