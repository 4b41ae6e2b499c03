"""The diagnosis: gradients of silenced copies, places by what they gain for their cost, and jobs that follow it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import HYPERPARAMS, MakeRun, exported, killed_at, last_checkpoint, of_type, outcome
from fusion_core.growth_plan import GrowthPlan, place, plan_growth
from fusion_engine.base_folder import load_model, open_base
from fusion_engine.batch import Batch
from fusion_engine.diagnose import diagnose, place_by_gain
from fusion_engine.grow import grow, new_blocks
from fusion_engine.objective import next_token_loss
from fusion_engine.run import execute
from msgspec.structs import replace


def batch() -> Batch:
    ids = torch.randint(30, (2, 13), generator=torch.Generator().manual_seed(4))
    return Batch(ids[:, :-1], ids[:, 1:], torch.arange(12).expand(2, 12), torch.zeros(2, dtype=torch.bool))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "falcon_h1"])
def test_scores_are_the_gradients_of_a_really_grown_model(
    family: str, family_maker: Callable[..., Any], tmp_path: Path
) -> None:
    """A model that is grown after every group, on disk, has the same gradients where it was silenced."""
    family_maker(family).save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    plan = plan_growth(config, growth_factor=1.2)
    everywhere = plan_growth(config, layers_added=plan.groups_before * plan.group, placement="even")
    opened = open_base(tmp_path / "base", everywhere)
    grow(opened, everywhere, tmp_path / "grown")
    grown = load_model(tmp_path / "grown", torch.float32).eval()
    loss, targets = next_token_loss(grown, batch())
    torch.autograd.backward(loss)
    blocks = new_blocks(everywhere)
    wanted = [0.0] * plan.groups_before
    for name, parameter in grown.named_parameters():
        split = opened.family.split(name)
        if split is not None and split[0] in blocks and opened.family.writes_residual(split[1]):
            assert parameter.grad is not None
            wanted[blocks.index(split[0]) // plan.group] += float(parameter.grad.abs().sum()) / int(targets)
    base = load_model(opened.path, torch.float32)
    found = diagnose(base, opened.family, plan, [batch()])
    assert found == pytest.approx(wanted, rel=1e-3)
    assert min(found) > 0
    assert diagnose(base, opened.family, plan, [batch()]) == found  # the model is as it was


def plan_of(groups: int, added: int) -> GrowthPlan:
    plan = GrowthPlan(layers_before=groups, new_after=(0,) * added, params_before=100, params_after=150)
    return place(plan, range(added))


@pytest.mark.parametrize(
    ("scores", "added", "expected"),
    [
        ((1.0, 1.0, 1.0, 1.0), 2, (2, 3)),  # where all gain the same, the cheapest: training stops higher up
        ((9.0, 1.0, 1.0, 1.0), 1, (0,)),  # one place that gains much more is worth the longer way down
        ((1.0, 1.0, 1.0, 9.0), 3, (3, 3, 3)),
        ((1.0, 1.0, 8.0, 9.0), 3, (2, 3, 3)),
    ],
)
def test_places_are_those_that_gain_most_for_what_they_cost(
    scores: tuple[float, ...], added: int, expected: tuple[int, ...]
) -> None:
    assert place_by_gain(plan_of(4, added), scores).new_after == expected


def test_a_job_grows_where_the_diagnosis_says_and_resumes_there(make_run: MakeRun) -> None:
    settings = replace(HYPERPARAMS, growth_placement="diagnosed")
    whole, killed = make_run("whole", hyperparams=settings), make_run("killed", hyperparams=settings)
    execute(whole)
    (found,) = of_type(whole, "Diagnosed")
    assert len(found.scores) == 3
    assert outcome(whole).result["growth_plan"]["new_after"] == list(found.new_after)
    killed_at("step:7", killed)
    resumed = make_run("resumed", hyperparams=settings, checkpoint_dir=last_checkpoint(killed))
    execute(resumed)
    assert of_type(resumed, "Diagnosed") == []
    assert exported(resumed) == exported(whole)


def test_places_that_were_asked_for_are_kept(make_run: MakeRun) -> None:
    run_dir = make_run("even", hyperparams=replace(HYPERPARAMS, growth_placement="even"))
    execute(run_dir)
    assert of_type(run_dir, "Diagnosed") == []
