"""Rehearsal against the base's own softmax: the right teacher, the right loss, less forgetting, exact resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from engine_runs import HYPERPARAMS, MakeRun, exported, killed_at, last_checkpoint
from fusion_core.growth_plan import GrowthPlan, plan_growth
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import TrainRun
from fusion_engine.base_folder import BaseFolder, load_model, open_base
from fusion_engine.batch import Batch
from fusion_engine.grow import grow, new_blocks
from fusion_engine.lora import adapters_off, attach_adapters
from fusion_engine.objective import next_token_loss
from fusion_engine.rehearsal import rehearsing_loss
from fusion_engine.run import execute
from fusion_engine.sample import sample_batch
from fusion_engine.trainable import Trainable, load_grown
from msgspec.structs import replace

CPU, FP32 = torch.device("cpu"), torch.float32
SETTINGS = replace(HYPERPARAMS, replay_fraction=0.5, own_head=False)
SCOPES = [SETTINGS, replace(SETTINGS, train_scope="all"), replace(SETTINGS, own_head=True)]
SCOPE_NAMES = ["new", "all", "own-head"]


def batch_of(rehearsed: list[bool], vocabulary: int = 30) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (len(rehearsed), 13), generator=generator)
    return Batch(ids[:, :-1], ids[:, 1:], torch.arange(12).expand(len(rehearsed), 12), torch.tensor(rehearsed))


def grown_of(base: Path, folder: Path, settings: Hyperparams) -> tuple[BaseFolder, GrowthPlan, Trainable]:
    plan = plan_growth(json.loads((base / "config.json").read_text()), own_head=settings.own_head)
    opened = open_base(base, plan)
    grow(opened, plan, folder)
    return opened, plan, load_grown(folder, plan, settings, opened.family, FP32)


def learned(grown: Trainable) -> Trainable:
    """The model as if it had been trained for a while."""
    generator = torch.Generator().manual_seed(2)
    for parameter in grown.parameters.values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return grown


def run_of(plan: GrowthPlan, settings: Hyperparams, pool: tuple[str, ...] = ("a pool",)) -> TrainRun:
    return TrainRun(job_id="0190", lease_epoch=1, base_dir="", hyperparams=settings, growth_plan=plan, pool_files=pool)


@pytest.mark.parametrize("settings", SCOPES, ids=SCOPE_NAMES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "falcon_h1"])
def test_the_loss_is_the_divergence_from_the_base_and_the_cross_entropy_of_other_rows(
    family: str, settings: Hyperparams, family_maker: Callable[..., Any], tmp_path: Path
) -> None:
    family_maker(family).save_pretrained(tmp_path / "base")
    opened, plan, grown = grown_of(tmp_path / "base", tmp_path / "grown", settings)
    loss_of = rehearsing_loss(run_of(plan, settings), opened, grown, FP32, CPU)
    batch = batch_of([False, True, False, True])
    loss_of(grown.model, batch)
    learned(grown)
    loss, targets = loss_of(grown.model, batch)
    with torch.no_grad():
        wanted = load_model(opened.path, FP32)(**batch.inputs, use_cache=False).logits.log_softmax(-1)[[1, 3]]
        found = grown.model(**batch.inputs, use_cache=False).logits
        divergence = F.kl_div(found[[1, 3]].log_softmax(-1), wanted, log_target=True, reduction="sum")
        plain = F.cross_entropy(found[[0, 2]].flatten(0, 1), batch.labels[[0, 2]].flatten(), reduction="sum")
    assert divergence > 0.01 * plain
    torch.testing.assert_close(loss.detach(), divergence + plain, rtol=1e-4, atol=1e-4)
    assert int(targets) == batch.labels.numel()


def test_blocks_below_the_first_new_one_are_computed_once_for_both(tiny_base: Path, tmp_path: Path) -> None:
    opened, plan, grown = grown_of(tiny_base, tmp_path / "grown", SETTINGS)
    new, stack = new_blocks(plan), grown.model.get_decoder().layers
    computed: list[int] = []
    for number, block in enumerate(stack):
        block.mlp.register_forward_hook(lambda *_, number=number: computed.append(number))
    loss_of = rehearsing_loss(run_of(plan, SETTINGS), opened, grown, FP32, CPU)
    loss_of(grown.model, batch_of([False, True, False]))
    old_above = [number for number in range(min(new), len(stack)) if number not in new]
    assert min(new) > 0
    assert old_above
    assert computed == [*range(len(stack)), *old_above]


@pytest.mark.parametrize("settings", SCOPES, ids=SCOPE_NAMES)
def test_before_training_the_base_has_nothing_to_correct(
    settings: Hyperparams, tiny_base: Path, tmp_path: Path
) -> None:
    opened, plan, grown = grown_of(tiny_base, tmp_path / "grown", settings)
    loss, _ = rehearsing_loss(run_of(plan, settings), opened, grown, FP32, CPU)(grown.model, batch_of([True] * 3))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-4)
    loss.backward()
    norms = [float(parameter.grad.norm()) for parameter in grown.parameters.values() if parameter.grad is not None]
    assert norms
    assert max(norms) < 1e-3


def test_without_a_pool_or_without_replay_the_loss_is_the_plain_one(tiny_base: Path, tmp_path: Path) -> None:
    opened, plan, grown = grown_of(tiny_base, tmp_path / "grown", SETTINGS)
    for settings, pool in ((SETTINGS, ()), (replace(SETTINGS, replay_fraction=0.0), ("a pool",))):
        assert rehearsing_loss(run_of(plan, settings, pool), opened, grown, FP32, CPU) is next_token_loss


@pytest.fixture(scope="module")
def pool(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    rows = sample_batch(load_model(tiny_base, FP32).eval(), 1, 64, 17, seed=3)
    path.write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in rows))
    return (str(path),)


@pytest.mark.parametrize("settings", SCOPES, ids=SCOPE_NAMES)
def test_a_killed_job_resumes_to_the_same_bytes(
    make_run: MakeRun, pool: tuple[str, ...], settings: Hyperparams
) -> None:
    inputs: dict[str, Any] = {"hyperparams": settings, "pool_files": pool, "rehearsal_files": ()}
    whole, killed = make_run("whole", **inputs), make_run("killed", **inputs)
    execute(whole)
    killed_at("step:7", killed)
    resumed = make_run("resumed", checkpoint_dir=last_checkpoint(killed), **inputs)
    execute(resumed)
    assert exported(resumed) == exported(whole)


@pytest.mark.parametrize("settings", SCOPES, ids=SCOPE_NAMES)
def test_rehearsal_keeps_the_model_near_its_base(
    make_run: MakeRun, tiny_base: Path, pool: tuple[str, ...], settings: Hyperparams
) -> None:
    """KL(base || model) over text of the base, after training with a rehearsed half of the rows and without."""
    ids = torch.from_numpy(np.asarray([json.loads(line)["ids"] for line in Path(pool[0]).read_text().splitlines()]))
    wanted = load_model(tiny_base, FP32)(input_ids=ids).logits.log_softmax(-1).detach()
    divergence = []
    settings = replace(settings, steps_per_cycle=20)
    for name, files in (("with", pool), ("without", ())):
        run_dir = make_run(name, hyperparams=settings, pool_files=files, rehearsal_files=())
        execute(run_dir)
        found = load_model(run_dir / "export", FP32)(input_ids=ids).logits.log_softmax(-1).detach()
        divergence.append(float(F.kl_div(found, wanted, log_target=True, reduction="sum")) / ids.numel())
    assert divergence[0] < 0.8 * divergence[1]


def test_the_base_of_a_fine_tuning_job_is_its_model_with_the_adapters_off(tiny_base: Path) -> None:
    model, base = load_model(tiny_base, FP32), load_model(tiny_base, FP32)
    parameters, _ = attach_adapters(model, open_base(tiny_base), rank=4)
    learned(Trainable(model, parameters, {}))
    inputs = batch_of([True]).inputs
    with torch.no_grad():
        wanted, changed = base(**inputs).logits, model(**inputs).logits
        with adapters_off(model):
            assert torch.equal(model(**inputs).logits, wanted)
        assert torch.equal(model(**inputs).logits, changed)
    assert not torch.equal(changed, wanted)
    assert all(parameter.requires_grad for parameter in parameters.values())
