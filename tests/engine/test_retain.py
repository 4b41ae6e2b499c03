"""`retain`: from what was learned back to the base, and what the customer sees of it."""

import pytest
import torch
from engine_runs import HYPERPARAMS, MakeRun, outcome
from fusion_core.job_spec import Hyperparams
from fusion_engine.run import execute
from msgspec.structs import replace
from safetensors.torch import load_file

SHORT = replace(HYPERPARAMS, turns=1, steps_per_cycle=2)
WIDE = replace(SHORT, growth_axis="width")
OWN_HEAD = replace(SHORT, growth_factor=2.0, own_head=True)
SCOPES = [SHORT, replace(SHORT, train_scope="all"), WIDE, replace(WIDE, train_scope="all"), OWN_HEAD]


@pytest.mark.parametrize("settings", SCOPES, ids=["new", "all", "wide-new", "wide-all", "own-head"])
def test_weights_are_exported_part_of_the_way_back(make_run: MakeRun, settings: Hyperparams) -> None:
    folders = {}
    for share in (0.0, 0.5, 1.0):
        folders[share] = make_run(f"retain-{share}", hyperparams=replace(settings, retain=share))
        execute(folders[share])
    weights = {share: load_file(folder / "export" / "model.safetensors") for share, folder in folders.items()}
    start = load_file(folders[0.0] / "grown" / "model.safetensors")
    for name, learned in weights[0.0].items():
        torch.testing.assert_close(weights[0.5][name], (learned + start[name]) / 2)
        assert torch.equal(weights[1.0][name], start[name])


def test_the_curve_runs_from_what_was_learned_to_the_base(make_run: MakeRun) -> None:
    run_dir = make_run("half", hyperparams=replace(HYPERPARAMS, retain=0.5))
    execute(run_dir)
    result = outcome(run_dir).result
    shares = [point["retain"] for point in result["retain_curve"]]
    values = [point["perplexity"] for point in result["retain_curve"]]
    assert (result["retain"], shares) == (0.5, [0.25, 0.5, 0.75])
    assert values == sorted(values)
    assert result["perplexity"]["turn_2"] < values[0]
    assert values[-1] < result["perplexity_before"]
    assert result["perplexity_after"] == values[1]
