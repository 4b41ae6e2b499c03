"""Channel statistics and scores, slices of stored tensors, reconstruction and the choice of layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_engine.base_folder import load_model
from fusion_engine.channel_slices import SelectedColumns, SelectedRows
from fusion_engine.families import FAMILIES
from fusion_engine.importance import (
    ChannelStatistics,
    best_channels,
    calibrate,
    channel_scores,
    choose_layers,
    down_projections,
    layer_damage,
    only_channels,
)
from fusion_engine.packing import Row
from fusion_engine.reconstruct import reconstruct
from fusion_engine.safetensors_stream import MemoryTensor, StoredTensor, read_header, write_file

LLAMA = FAMILIES["llama"]
IDS = np.random.default_rng(0).integers(0, 24, (40, 18)).astype(np.int32)
ROWS = [Row(ids, np.ones(18, np.bool_), np.arange(18) == 0) for ids in IDS]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return load_model(tiny_base, torch.float32).eval().requires_grad_(False)


def test_statistics_of_uneven_batches_are_those_of_all_values_at_once() -> None:
    torch.manual_seed(0)
    values = torch.randn(301, 5) * torch.tensor([1.0, 10.0, 0.0, 1e-3, 1.0]) + torch.tensor([0.0, 1e4, 7.0, 0.0, -1.0])
    statistics = ChannelStatistics(5, values.device)
    for start, end in ((0, 1), (1, 200), (200, 301)):
        statistics.add(values[start:end].reshape(1, -1, 5))
    exact = values.double()
    assert torch.allclose(statistics.mean, exact.mean(0), rtol=1e-12, atol=1e-12)
    assert torch.allclose(statistics.variance, exact.var(0, unbiased=False), rtol=1e-9, atol=1e-12)
    assert torch.allclose(statistics.mean_square, exact.square().mean(0), rtol=1e-9)


def test_a_constant_channel_is_worth_nothing_to_flap_and_something_to_wanda() -> None:
    statistics = ChannelStatistics(3, torch.device("cpu"))
    statistics.add(torch.tensor([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0]]))
    weight = torch.tensor([[3.0, 1.0, 9.0], [4.0, 0.0, 9.0]])
    assert channel_scores("flap", statistics, weight).tolist() == [0.0, 1.0, 0.0]
    assert channel_scores("wanda", statistics, weight).tolist() == [10.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="flap and wanda are known"):
        channel_scores("taylor", statistics, weight)


def test_the_best_channels_come_in_order_and_ties_keep_the_lower() -> None:
    assert best_channels(torch.tensor([1.0, 5.0, 1.0, 7.0, 1.0]), 3).tolist() == [0, 1, 3]


def test_calibration_sees_what_the_down_projections_read_and_leaves_no_hook(model: Any) -> None:
    statistics = calibrate(model, LLAMA, ROWS)
    assert [each.count for each in statistics] == [40 * 17] * 3
    seen = []
    handle = down_projections(model, LLAMA)[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(input_ids=torch.from_numpy(IDS[:, :-1].astype(np.int64)))
    handle.remove()
    assert torch.allclose(statistics[1].mean, seen[0].reshape(-1, 64).double().mean(0), atol=1e-9)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_damage_is_zero_where_nothing_is_cut_and_grows_with_the_cut(model: Any) -> None:
    scores = [
        channel_scores("flap", each, module.weight)
        for each, module in zip(calibrate(model, LLAMA, ROWS), down_projections(model, LLAMA), strict=True)
    ]
    kept = [best_channels(scores[0], 64), best_channels(scores[1], 48), best_channels(scores[2], 8)]
    damage = layer_damage(model, LLAMA, kept, ROWS)
    assert damage[0] == 0.0
    assert damage[1] > 0.0
    more = layer_damage(model, LLAMA, [kept[0], best_channels(scores[1], 8), kept[2]], ROWS)
    assert more[1] > damage[1]
    assert more[2] == damage[2]


def test_layers_are_chosen_by_damage_and_the_first_one_last() -> None:
    damage = [0.1, 0.4, 0.3, 0.2]
    assert choose_layers(damage, 1) == (3,)
    assert choose_layers(damage, 2) == (2, 3)
    assert choose_layers(damage, 3) == (1, 2, 3)
    assert choose_layers(damage, 4) == (0, 1, 2, 3)


def test_reconstruction_comes_nearer_to_the_whole_layer_than_the_cut_alone(model: Any) -> None:
    kept = [torch.arange(0, 64, 2)] * 3
    down = reconstruct(model, LLAMA, kept, ROWS)
    assert {name: tuple(tensor.shape) for name, tensor in down.items()} == {
        f"model.layers.{layer}.mlp.down_proj.weight": (32, 32) for layer in range(3)
    }
    inputs: list[torch.Tensor] = []
    module = down_projections(model, LLAMA)[2]
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].reshape(-1, 64)))
    model(input_ids=torch.from_numpy(IDS[:, :-1].astype(np.int64)))
    handle.remove()
    whole = inputs[0] @ module.weight.T
    cut = inputs[0][:, kept[2]] @ module.weight[:, kept[2]].T
    solved = inputs[0][:, kept[2]] @ down["model.layers.2.mlp.down_proj.weight"].T
    assert (whole - solved).norm() < 0.9 * (whole - cut).norm()


def test_reconstruction_without_a_cut_changes_nothing(model: Any) -> None:
    down = reconstruct(model, LLAMA, [torch.arange(64)] * 3, ROWS)
    for module, tensor in zip(down_projections(model, LLAMA), down.values(), strict=True):
        assert torch.allclose(module.weight, tensor, atol=1e-6)


def test_gram_matrices_beyond_the_memory_limit_take_several_passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [torch.arange(0, 64, 2)] * 3
    at_once = reconstruct(model, LLAMA, kept, ROWS)
    monkeypatch.setattr("fusion_engine.reconstruct._GRAM_BYTES", 1)
    one_by_one = reconstruct(model, LLAMA, kept, ROWS)
    assert at_once.keys() == one_by_one.keys()
    assert all(torch.equal(at_once[name], one_by_one[name]) for name in at_once)


def test_only_the_named_channels_are_read_and_only_inside(model: Any) -> None:
    module = down_projections(model, LLAMA)[0]
    inputs = torch.randn(3, 64)
    with only_channels(module, torch.tensor([1, 5])):
        assert torch.allclose(module(inputs), inputs[:, [1, 5]] @ module.weight[:, [1, 5]].T, atol=1e-6)
    assert torch.allclose(module(inputs), inputs @ module.weight.T, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("band", [1, 100, 8 * 1024 * 1024])
def test_slices_are_those_of_the_tensor_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, band: int
) -> None:
    monkeypatch.setattr("fusion_engine.channel_slices._BAND_BYTES", band)
    matrix, vector = torch.randn(11, 7).to(dtype), torch.randn(11).to(dtype)
    path = tmp_path / "t.safetensors"
    write_file(path, {"m": MemoryTensor.of(matrix), "v": MemoryTensor.of(vector)})
    stored: dict[str, StoredTensor] = read_header(path)
    rows, columns = np.array([0, 3, 4, 10]), np.array([1, 2, 6])
    slices = {
        "rows": (SelectedRows(stored["m"], rows), matrix[rows]),
        "columns": (SelectedColumns(stored["m"], columns), matrix[:, columns]),
        "entries": (SelectedRows(stored["v"], rows), vector[rows]),
    }
    for name, (source, expected) in slices.items():
        assert source.shape == tuple(expected.shape), name
        assert b"".join(source.chunks()) == b"".join(MemoryTensor.of(expected.contiguous()).chunks()), name
