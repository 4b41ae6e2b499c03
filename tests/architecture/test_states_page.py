"""docs/states.md draws the table of fusion_core.states, no more and no less."""

import re
from pathlib import Path

from fusion_core.states import TERMINAL, TRANSITIONS, State, Status, public_status

PAGE = (Path(__file__).parents[2] / "docs/states.md").read_text()
Pairs = dict[tuple[str, str], set[str]]
TABLE: Pairs = {(before.value, after.value): set(names) for (before, after), names in TRANSITIONS.items()}


def names(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_the_diagram_is_the_table() -> None:
    (diagram,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", PAGE, re.DOTALL)
    arrows = re.findall(r"^ +(\w+|\[\*\]) --> (\w+|\[\*\])(?:: (.*))?$", diagram, re.MULTILINE)
    drawn = {(before, after): names(text) for before, after, text in arrows if "[*]" not in (before, after)}
    assert drawn == TABLE
    assert {after for before, after, _ in arrows if before == "[*]"} == {State.QUEUED.value}
    assert {before for before, after, _ in arrows if after == "[*]"} == {state.value for state in TERMINAL}


def test_the_page_lists_every_transition() -> None:
    rows = re.findall(r"^\| (\w+) \| (\w+) \| ([`\w, ]+) \|", PAGE, re.MULTILINE)
    listed: Pairs = {
        (before, after): names(text) for before, after, text in rows if before in State.__members__.values()
    }
    assert listed == TABLE


def test_the_page_lists_every_status() -> None:
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE)
    assert {status for status, _, _ in listed} == {status.value for status in Status}
    for status, state, condition in listed:
        phase = re.search(r"phase `(\w+)`", condition)
        interrupted = "lost" if "interrupted" in condition and "not interrupted" not in condition else None
        assert public_status(state, phase.group(1) if phase else None, interrupted) == status
