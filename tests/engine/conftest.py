"""A tiny random Llama with its own tokenizer, and run directories over it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_core.growth_plan import plan_depth_growth
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import TrainRun, write_run
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# fmt: off
WORDS = ("the", "model", "grows", "new", "layers", "and", "learns", "from", "every", "row", "while", "old", "weights")
# fmt: on


def rows(count: int, offset: int = 0) -> list[str]:
    """Deterministic sentences that a small model can learn."""
    return [" ".join(WORDS[(i * 7 + j * 3 + offset) % len(WORDS)] for j in range(24)) for i in range(count)]


def write_rows(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def make_base(folder: Path, **overrides: Any) -> Path:
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        rows(50), trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<eos>"], show_progress=False)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    settings = {
        "vocab_size": len(fast),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    config = LlamaConfig(**(settings | overrides))
    model = LlamaForCausalLM(config).to(config.dtype or torch.float32)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def base_maker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return lambda **overrides: make_base(tmp_path_factory.mktemp("base") / "other", **overrides)


HYPERPARAMS = Hyperparams(turns=2, cycles=2, steps_per_cycle=4, lr=1e-2, seq_len=16, batch_size=4)


@pytest.fixture
def make_run(tiny_base: Path, tmp_path: Path) -> Callable[..., Path]:
    """make_run(name, base=..., hyperparams=..., **fields of TrainRun) -> a run directory, run.json written."""

    def make(name: str, *, base: Path = tiny_base, hyperparams: Hyperparams = HYPERPARAMS, **fields: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((base / "config.json").read_text())
        spec = {
            "job_id": "0190",
            "lease_epoch": 1,
            "hyperparams": hyperparams,
            "growth_plan": plan_depth_growth(config, hyperparams.growth_factor),
            "base_dir": str(base),
            "train_shards": (write_rows(folder / "train.jsonl", rows(120)),),
            "heldout_shards": (write_rows(folder / "heldout.jsonl", rows(12, offset=2)),),
            "rehearsal_files": (write_rows(folder / "rehearsal.jsonl", rows(30, offset=5)),),
            "checkpoint_every_s": 0.0,
            "metrics_every_s": 0.0,
        }
        write_run(folder, TrainRun(**(spec | fields)))
        return folder

    return make


@pytest.fixture
def copy_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "damaged"))
