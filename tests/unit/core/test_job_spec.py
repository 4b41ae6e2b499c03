"""Turns, cycles and steps: three ways to count that must agree."""

import math

import msgspec
import pytest
from fusion_core.job_spec import Hyperparams, settle
from hypothesis import given
from hypothesis import strategies as st

hyperparams = st.builds(
    Hyperparams,
    turns=st.integers(1, 10),
    cycles=st.integers(1, 60),
    steps_per_cycle=st.integers(1, 300),
    train_steps=st.none() | st.integers(1, 2000),
)


@given(hyperparams, st.data())
def test_a_step_lies_in_its_turn_and_in_its_cycle(job: Hyperparams, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, job.total_steps))
    turn, cycle = job.turn_of(step), job.cycle_of(step)
    assert (turn - 1) * job.steps_per_turn < step <= turn * job.steps_per_turn
    assert (turn - 1) * job.cycles < cycle <= turn * job.cycles
    assert step <= job.cycle_end(cycle)
    assert cycle == 1 or job.cycle_end(cycle - 1) < step, "the cycle before has ended"


@given(hyperparams)
def test_every_cycle_ends_where_it_should_and_the_last_with_the_job(job: Hyperparams) -> None:
    for cycle in range(1, job.turns * job.cycles + 1):
        turn, within = divmod(cycle - 1, job.cycles)
        expected = turn * job.steps_per_turn + math.ceil((within + 1) * job.steps_per_turn / job.cycles)
        assert job.cycle_end(cycle) == expected
    assert job.cycle_end(job.turns * job.cycles) == job.total_steps


@given(hyperparams, st.data())
def test_steps_never_go_back_a_cycle(job: Hyperparams, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, job.total_steps))
    assert job.cycle_of(step) <= job.cycle_of(min(step + 1, job.total_steps))


def test_the_defaults_are_those_of_the_manual() -> None:
    job = Hyperparams()
    assert (job.steps_per_turn, job.tokens_per_step, job.training_tokens) == (6000, 256, 1_536_000)
    assert Hyperparams(train_steps=7, turns=2, batch_size=3).training_tokens == 7 * 2 * 3 * 256


@pytest.mark.parametrize(
    "wrong",
    [
        {"turns": 0},
        {"turns": 11},
        {"lr": 0},
        {"growth_factor": 4.1},
        {"seq_len": 7},
        {"epochs": 1},
        {"output_name": "a/b"},
    ],
)
def test_values_out_of_range_and_unknown_names_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Hyperparams)


def test_settings_that_contradict_are_named_and_no_growth_trains_everything():
    settled, faults = settle(Hyperparams(growth_factor=1.0), ())
    assert (settled.train_scope, faults) == ("all", {})
    assert settle(Hyperparams(growth_factor=1.0), {"train_scope"})[1].keys() == {"train_scope"}
    assert settle(Hyperparams(layers_added=2), {"growth_factor"})[1].keys() == {"layers_added"}
    assert settle(Hyperparams(layers_added=2, growth_axis="width"), ())[1].keys() == {"layers_added"}
    assert settle(Hyperparams(layers_added=2), {"layers_added"})[1] == {}
    assert settle(Hyperparams(growth_factor=1.0, own_head=True), {"own_head"})[1].keys() == {"own_head"}


def test_a_head_that_learns_anyway_gets_no_own_one_unless_asked_for():
    for asked, scope, settled in ((None, "all", False), (True, "all", True), (None, "new", None)):
        assert settle(Hyperparams(train_scope=scope, own_head=asked), ())[0].own_head is settled
