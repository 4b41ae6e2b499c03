"""The engine's small parts: safetensors streams, packing, the order of rows and the learning rate."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fusion_core.job_spec import Hyperparams
from fusion_engine.data_order import RowOrder, TrainingRows
from fusion_engine.files import complete_or_absent
from fusion_engine.optimizer import learning_rate
from fusion_engine.packing import PackedRows, pack
from fusion_engine.safetensors_stream import DamagedFileError, MemoryTensor, ZeroTensor, read_header, write_model
from fusion_engine.tokenize_rows import Document
from safetensors.torch import load_file


def packed(folder: Path, tokens: int, seq_len: int = 4, start: int = 0) -> PackedRows:
    """One document of ids that count up."""
    folder.mkdir()
    ids = np.arange(start, start + tokens, dtype=np.int32)
    documents = [Document(ids, ids > start, whole=False)] if tokens else []
    return pack(documents, folder, "rows", seq_len, join=True)


def test_written_tensors_are_read_by_the_real_library(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(7).bfloat16(),
        "c": torch.tensor(2.0),
        "empty": torch.zeros(0, 4),
    }
    sources = {name: MemoryTensor.of(tensor) for name, tensor in tensors.items()} | {"z": ZeroTensor("F16", (2, 2))}
    write_model(tmp_path, sources)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == sources.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype
    assert not read["z"].any()
    for name, stored in read_header(tmp_path / "model.safetensors").items():
        assert b"".join(stored.chunks()) == b"".join(sources[name].chunks()) if name != "z" else True


def test_a_large_model_is_sharded_with_an_index(tmp_path: Path) -> None:
    sources = {f"t{number}": MemoryTensor.of(torch.full((10,), float(number))) for number in range(5)}
    write_model(tmp_path, sources, shard_bytes=80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for name, shard in index["weight_map"].items():
        assert float(load_file(tmp_path / shard)[name][0]) == float(name[1:])


def test_the_order_in_which_tensors_come_changes_no_byte(tmp_path: Path) -> None:
    sources = {name: MemoryTensor.of(torch.ones(4)) for name in "abc"} | {"h": ZeroTensor("BF16", (3,))}
    for folder, names in ((tmp_path / "1", sorted(sources)), (tmp_path / "2", sorted(sources, reverse=True))):
        folder.mkdir()
        write_model(folder, {name: sources[name] for name in names})
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()


@pytest.mark.parametrize("cut", [0, 4, 9, 40, -1])
def test_a_cut_file_is_damaged(tmp_path: Path, cut: int) -> None:
    write_model(tmp_path, {"a": MemoryTensor.of(torch.ones(4))})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedFileError):
        read_header(path)


def test_rows_predict_every_token_once(tmp_path: Path) -> None:
    rows = packed(tmp_path / "ids", 14)
    assert len(rows) == 4
    assert rows.row(2).ids.tolist() == [8, 9, 10, 11, 12]
    assert [row.ids.tolist()[1:] for row in rows.spread(100)] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13]]
    assert [int(row.ids[0]) for row in packed(tmp_path / "many", 401).spread(16)] == [0, 100, 200, 300]


def test_each_pass_is_another_permutation_and_needs_no_past() -> None:
    order = RowOrder(50, seed=3, stream=0)
    passes = [[order.index(start + place) for place in range(50)] for start in (0, 50)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(50))
    assert passes[0] != passes[1]
    assert RowOrder(50, seed=3, stream=0).index(77) == passes[1][27]
    assert [RowOrder(50, seed=4, stream=0).index(place) for place in range(50)] != passes[0]


def test_rehearsal_rows_are_a_fixed_share(tmp_path: Path) -> None:
    dataset, rehearsal = packed(tmp_path / "d", 401), packed(tmp_path / "r", 41, start=1000)
    rows = TrainingRows(dataset, rehearsal, replay_fraction=0.1, seed=0)
    drawn = [int(rows.row(number)[0].ids[0]) for number in range(1000)]
    assert sum(first >= 1000 for first in drawn) == 100
    assert set(Counter(first for first in drawn if first < 1000).values()) == {9}, "900 draws from 100 rows"
    alone = TrainingRows(dataset, packed(tmp_path / "e", 0), replay_fraction=0.1, seed=0)
    assert all(alone.row(number)[0].ids[0] < 1000 for number in range(50))


def test_the_ranks_share_a_batch(tmp_path: Path) -> None:
    rows = TrainingRows(packed(tmp_path / "d", 401), None, 0.1, seed=0)
    whole, halves = rows.batch(40, 4, 0, 1), [rows.batch(40, 4, rank, 2) for rank in (0, 1)]
    assert whole.input_ids.shape == (4, 4)
    assert whole.input_ids[0::2].tolist() == halves[0].input_ids.tolist()
    assert whole.labels[1::2].tolist() == halves[1].labels.tolist()


def test_one_cosine_over_all_turns() -> None:
    hyperparams = Hyperparams(turns=2, cycles=1, steps_per_cycle=50, lr=1.0, warmup=0.1)
    rates = [learning_rate(hyperparams, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001
    assert learning_rate(Hyperparams(cycles=1, steps_per_cycle=1, warmup=0.0), 1) == 1e-4


def test_a_folder_is_complete_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "8"
    with pytest.raises(OSError, match="full"), complete_or_absent(target) as partial:
        (partial / "a").write_text("half")
        raise OSError("full")
    assert list(target.parent.iterdir()) == []
    for content in ("old", "new"):
        with complete_or_absent(target) as partial:
            (partial / "a").write_text(content)
    assert (target / "a").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]
