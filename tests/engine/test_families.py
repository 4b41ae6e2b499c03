"""Growth of every family, in depth and in width: no logit changes, no greedy text changes, and it can be done again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_core.growth_plan import Axis, GrowthPlan, plan_growth
from fusion_engine.base_folder import load_model, open_base
from fusion_engine.grow import grow, grown_config
from fusion_engine.guard import check_growth, guard_prompts
from fusion_engine.outcomes import RejectedError
from fusion_engine.safetensors_stream import read_header
from tiny_families import FAMILY_MODELS, VOCABULARY, make_family_model
from transformers import AutoConfig, AutoModelForCausalLM

CPU = torch.device("cpu")
PROMPTS = guard_prompts([np.arange(40, dtype=np.int32), np.arange(100, dtype=np.int32) * 7 % VOCABULARY], VOCABULARY)


@pytest.fixture(scope="module", params=FAMILY_MODELS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family_model(tmp_path_factory.mktemp(request.param) / "base", request.param)


def grown(base: Path, folder: Path, **request: Any) -> GrowthPlan:
    plan = plan_growth(json.loads((base / "config.json").read_text()), **request)
    grow(open_base(base, plan), plan, folder)
    return plan


def greedy(folder: Path) -> list[int]:
    """What a user gets: loaded without Fusion, in its own dtype, generating with a cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    prompt = torch.tensor([[5, 40, 7, 33]])
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    ids: list[int] = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[0].tolist()
    return ids


@pytest.mark.parametrize(("axis", "growth_factor"), [("depth", 1.52), ("depth", 2.6), ("width", 1.52), ("width", 3.0)])
def test_growth_changes_nothing(base: Path, tmp_path: Path, axis: Axis, growth_factor: float) -> None:
    plan = grown(base, tmp_path / "grown", axis=axis, growth_factor=growth_factor)
    assert check_growth(base, tmp_path / "grown", PROMPTS, CPU) == 0.0
    model = load_model(tmp_path / "grown")
    assert model.num_parameters() == plan.params_after > plan.params_before
    model.save_pretrained(tmp_path / "saved")
    assert check_growth(base, tmp_path / "saved", PROMPTS, CPU) == 0.0
    assert greedy(base) == greedy(tmp_path / "grown")


@pytest.mark.parametrize("request_", [{"growth_factor": 1.9}, {"layers_added": 6}, {"axis": "width"}])
def test_a_head_of_its_own_changes_nothing_and_is_counted(base: Path, tmp_path: Path, request_: dict[str, Any]) -> None:
    plan = grown(base, tmp_path / "grown", own_head=True, **request_)
    assert plan.own_head is json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    assert check_growth(base, tmp_path / "grown", PROMPTS, CPU) == 0.0
    model = load_model(tmp_path / "grown")
    assert model.num_parameters() == plan.params_after
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "saved")
    assert check_growth(base, tmp_path / "saved", PROMPTS, CPU) == 0.0
    assert greedy(base) == greedy(tmp_path / "grown")
    again = grown(tmp_path / "grown", tmp_path / "twice", own_head=True)
    assert (again.own_head, again.params_before) == (False, plan.params_after)
    assert check_growth(base, tmp_path / "twice", PROMPTS, CPU) == 0.0


def test_width_is_exact_where_kernels_sum_in_another_order(tmp_path: Path) -> None:
    """MKL cuts a sum over 304 channels in two and one over 176 not: the plain forward differs by rounding."""
    folder = make_family_model(tmp_path / "base", "falcon_h1-gated", hidden_size=128, intermediate_size=176)
    plan = grown(folder, tmp_path / "grown", axis="width", growth_factor=1.3)
    assert plan.ffn_after > 256
    assert check_growth(folder, tmp_path / "grown", PROMPTS, CPU) == 0.0
    ids = torch.from_numpy(PROMPTS[-1].astype(np.int64))[None]
    with torch.no_grad():
        before, after = (load_model(path, torch.float32)(ids).logits for path in (folder, tmp_path / "grown"))
    assert torch.allclose(before, after, rtol=0, atol=1e-4 * float(before.abs().max()))


@pytest.mark.parametrize("axes", [("depth", "depth"), ("width", "width"), ("depth", "width"), ("width", "depth")])
def test_a_grown_model_can_be_grown_again(base: Path, tmp_path: Path, axes: tuple[Axis, Axis]) -> None:
    first = grown(base, tmp_path / "once", axis=axes[0])
    second = grown(tmp_path / "once", tmp_path / "twice", axis=axes[1])
    assert second.params_before == first.params_after
    assert check_growth(base, tmp_path / "twice", PROMPTS, CPU) == 0.0


@pytest.mark.parametrize("axis", ["depth", "width"])
def test_the_guard_notices_one_forgotten_projection(base: Path, tmp_path: Path, axis: Axis) -> None:
    plan = grown(base, tmp_path / "grown", axis=axis)
    number = plan.layout().index((plan.new_after[0], True)) if axis == "depth" else 1
    family = open_base(base).family
    writers = family.residual_writers if axis == "depth" else (f"{family.ffn}.down_proj",)
    weights = tmp_path / "grown" / "model.safetensors"
    before = weights.read_bytes()
    for writer in writers:
        tensor = read_header(weights)[family.join(number, f"{writer}.weight")]
        columns = tensor.shape[1]
        with weights.open("r+b") as file:  # the last entry of the first row is new in both cases
            file.seek(tensor.offset + 4 * (columns - 1))
            file.write(np.float32(0.05).tobytes())
        with pytest.raises(RejectedError) as caught:
            check_growth(base, tmp_path / "grown", PROMPTS, CPU)
        assert caught.value.code == "growth_not_preserving"
        weights.write_bytes(before)


def test_new_channels_copy_old_ones_and_write_nothing(base: Path, tmp_path: Path) -> None:
    plan = grown(base, tmp_path / "grown", axis="width", growth_factor=3.0)
    old, new, ffn = load_model(base).state_dict(), load_model(tmp_path / "grown").state_dict(), plan.ffn_before
    inner = f"model.layers.1.{open_base(base).family.ffn}"
    gate, up = (
        torch.cat([old[f"{inner}.{name}.weight"].T, new[f"{inner}.{name}.weight"].T], 1).T
        for name in ("gate_proj", "up_proj")
    )
    assert torch.equal(gate[:ffn], gate[ffn : 2 * ffn])
    sources = [int((gate[:ffn] == row).all(1).nonzero()[0, 0]) for row in gate[2 * ffn :]]
    assert torch.equal(up[2 * ffn :], up[sources])
    assert {sources.count(channel) for channel in range(ffn)} <= {len(sources) // ffn, len(sources) // ffn + 1}
    down = new[f"{inner}.down_proj.weight"]
    assert torch.equal(down[:, :ffn], old[f"{inner}.down_proj.weight"])
    assert not down[:, ffn:].any()


@pytest.mark.parametrize("key", ["layer_types", "no_rope_layers"])
def test_lists_that_a_base_leaves_to_its_class_are_written_out(tmp_path: Path, key: str) -> None:
    folder = make_family_model(tmp_path / "base", "smollm3")
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    grown(folder, tmp_path / "grown", growth_factor=2.0)
    assert check_growth(folder, tmp_path / "grown", PROMPTS, CPU) == 0.0
    plan = plan_growth(config, growth_factor=2.0)
    before = getattr(AutoConfig.from_pretrained(folder), key)
    assert grown_config(open_base(folder), plan)[key] == [before[source] for source, _ in plan.layout()]


def test_the_window_of_old_qwen_configs_moves(tmp_path: Path) -> None:
    folder = make_family_model(tmp_path / "base", "qwen2", max_window_layers=3)
    config = json.loads((folder / "config.json").read_text())
    del config["layer_types"]
    (folder / "config.json").write_text(json.dumps(config))
    plan = grown(folder, tmp_path / "grown", layers_added=3)
    assert check_growth(folder, tmp_path / "grown", PROMPTS, CPU) == 0.0
    written = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert written["max_window_layers"] == 3 + sum(source < 3 for source in plan.new_after)
    expected = ["full_attention"] * written["max_window_layers"]
    assert written["layer_types"] == expected + ["sliding_attention"] * (plan.layers_after - len(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_grow_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_family_model(tmp_path / "base", "gemma3")
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).save_pretrained(folder)
    for axis in ("depth", "width"):
        grown(folder, tmp_path / axis, axis=axis)
        assert check_growth(folder, tmp_path / axis, PROMPTS, CPU) == 0.0
        assert load_model(tmp_path / axis).dtype == dtype
