"""What the loop trains and how: both scopes, micro-batches, precision; each resumes to the same bytes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from engine_runs import HYPERPARAMS, MakeRun, exported, killed_at, last_checkpoint, of_type, outcome
from fusion_core.job_spec import Hyperparams
from fusion_engine.base_folder import open_base
from fusion_engine.checkpoint import TRAINED_FILE
from fusion_engine.grow import grow
from fusion_engine.run import execute
from fusion_engine.trainable import load_grown
from msgspec.structs import replace
from safetensors.torch import load_file

ALL = replace(HYPERPARAMS, train_scope="all", own_head=False)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one precision a process; this test needs another than its neighbours."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "export" / "model.safetensors")


@pytest.mark.parametrize("factor", [1.52, 1.0])
def test_deep_mode_trains_everything_and_resumes_exactly(make_run: MakeRun, tiny_base: Path, factor: float) -> None:
    settings = replace(ALL, growth_factor=factor)
    whole = make_run("whole", hyperparams=settings)
    execute(whole)
    result, base = outcome(whole).result, load_file(tiny_base / "model.safetensors")
    assert result["perplexity_after"] < result["perplexity_before"]
    assert (result["params_after"] > result["params_before"]) == (factor > 1.0)
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        assert not torch.equal(weights(whole)[name], base[name]), name
    killed = make_run("killed", hyperparams=settings)
    killed_at("step:7", killed)
    resumed = make_run(
        "resumed", hyperparams=replace(ALL, growth_factor=factor), checkpoint_dir=last_checkpoint(killed)
    )
    execute(resumed)
    assert exported(resumed) == exported(whole)


def test_old_weights_learn_at_their_share_of_the_rate(make_run: MakeRun, tiny_base: Path) -> None:
    still = make_run("still", hyperparams=replace(ALL, old_lr_scale=0.0))
    execute(still)
    name = "model.layers.0.mlp.up_proj.weight"
    base = load_file(tiny_base / "model.safetensors")
    assert torch.equal(weights(still)[name], base[name])
    moved = []
    for scale in (0.1, 0.5):
        run_dir = make_run(f"scale {scale}", hyperparams=replace(ALL, old_lr_scale=scale))
        execute(run_dir)
        moved.append(float((weights(run_dir)[name] - base[name]).abs().mean()))
    assert 0.0 < moved[0] < moved[1]


def test_a_tied_head_that_is_stored_twice_is_exported_as_trained(
    make_run: MakeRun, base_maker: Callable[..., Path]
) -> None:
    base = base_maker()
    tensors = load_file(base / "model.safetensors")
    from safetensors.torch import save_file

    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    run_dir = make_run("tied", base=base, hyperparams=ALL)
    execute(run_dir)
    assert torch.equal(weights(run_dir)["lm_head.weight"], weights(run_dir)["model.embed_tokens.weight"])
    assert not torch.equal(weights(run_dir)["lm_head.weight"], tensors["lm_head.weight"])


def test_nothing_to_train_is_refused(make_run: MakeRun) -> None:
    run_dir = make_run("nothing", hyperparams=replace(HYPERPARAMS, growth_factor=1.0))
    execute(run_dir)
    assert (outcome(run_dir).code, "train_scope all" in outcome(run_dir).message) == ("validation_failed", True)


def test_the_backward_pass_ends_at_the_first_new_block(make_run: MakeRun, tiny_base: Path, tmp_path: Path) -> None:
    from fusion_core.trainer_protocol import TrainRun, read_run

    run = read_run(make_run("graph", hyperparams=replace(HYPERPARAMS, own_head=False)))
    assert isinstance(run, TrainRun)
    base = open_base(tiny_base, run.growth_plan)
    grow(base, run.growth_plan, tmp_path / "grown")  # new blocks are 2 and 4 of 0 to 4
    grown = load_grown(tmp_path / "grown", run.growth_plan, HYPERPARAMS, base.family, torch.bfloat16)
    assert {parameter.dtype for parameter in grown.parameters.values()} == {torch.float32}
    frozen = {parameter.dtype for parameter in grown.model.parameters() if not parameter.requires_grad}
    assert frozen == {torch.bfloat16}
    recorded = {}
    for number, layer in enumerate(grown.model.model.layers):
        layer.register_forward_hook(
            lambda module, inputs, output, number=number: recorded.update({number: output.grad_fn is not None})
        )
    with torch.autocast("cpu", torch.bfloat16):
        grown.model(input_ids=torch.ones(1, 8, dtype=torch.long)).logits.sum().backward()
    assert recorded == {0: False, 1: False, 2: True, 3: True, 4: True}


def test_accumulation_is_the_larger_batch_up_to_float_order(make_run: MakeRun) -> None:
    runs = []
    for name, batch, accumulation in (("large", 8, 1), ("small", 2, 4)):
        settings = replace(HYPERPARAMS, turns=1, batch_size=batch, gradient_accumulation=accumulation)
        runs.append(make_run(name, hyperparams=settings))
        execute(runs[-1])
    large, small = (weights(run_dir) for run_dir in runs)
    for name, tensor in large.items():
        torch.testing.assert_close(small[name], tensor, rtol=1e-3, atol=2e-4)
    losses: list[list[Any]] = [[event.loss for event in of_type(run_dir, "Metrics")] for run_dir in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert outcome(runs[0]).result["tokens"] == outcome(runs[1]).result["tokens"] == 8 * 8 * 16


@pytest.mark.usefixtures("fresh_accelerate")
def test_bf16_on_a_cpu_keeps_fp32_masters_and_resumes_exactly(make_run: MakeRun) -> None:
    settings = replace(HYPERPARAMS, precision="bf16")
    whole = make_run("whole", hyperparams=settings)
    execute(whole)
    assert outcome(whole).result["perplexity_after"] < outcome(whole).result["perplexity_before"]
    path = of_type(whole, "CheckpointSaved")[6].path
    assert {tensor.dtype for tensor in load_file(Path(path) / TRAINED_FILE).values()} == {torch.float32}
    resumed = make_run("resumed", hyperparams=settings, checkpoint_dir=path)
    execute(resumed)
    assert exported(resumed) == exported(whole)


def test_evaluations_come_each_eval_every_steps_and_at_turn_ends(make_run: MakeRun) -> None:
    settings = Hyperparams(turns=2, train_steps=5, cycles=5, eval_every=3, seq_len=16, batch_size=4)
    run_dir = make_run("eval", hyperparams=settings)
    execute(run_dir)
    assert [event.step for event in of_type(run_dir, "Evaluation")] == [0, 3, 5, 6, 9, 10]
