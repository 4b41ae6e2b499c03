"""A tiny random Llama with its own tokenizer, and run directories over it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_ranks import Ranks
from engine_runs import HYPERPARAMS
from fusion_core.growth_plan import plan_growth
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import TrainRun, write_run
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
            "growth_plan": plan_growth(
                config,
                growth_factor=hyperparams.growth_factor,
                axis=hyperparams.growth_axis,
                placement="even",
                own_head=hyperparams.own_head,
            ),
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


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Starts runs of two processes."""
    with Ranks() as ranks:
        yield ranks


@pytest.fixture
def pool(tmp_path: Path) -> str:
    """A pool of 40 lines, of which four are held out."""
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"ids": [(7 * i + j) % 20 + 1 for j in range(16)]}) + "\n" for i in range(40)))
    return str(path)


@pytest.fixture
def copy_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "damaged"))


_TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
}
_SLIDING: dict[str, Any] = {"sliding_window": 5, "head_dim": 8, "query_pre_attn_scalar": 8}
# Each with what sets it apart: windows, softcaps, layers without positions, an SSM, multipliers.
FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2, "tie_word_embeddings": False},
    "mistral": {"num_hidden_layers": 2, "sliding_window": 5, "tie_word_embeddings": False},
    "qwen2": {"num_hidden_layers": 2, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5}
    | {"max_window_layers": 1},
    "qwen3": {"num_hidden_layers": 2, "tie_word_embeddings": True, "head_dim": 8},
    "gemma2": {"num_hidden_layers": 2, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0} | _SLIDING,
    "gemma3_text": {"num_hidden_layers": 6, "final_logit_softcapping": 2.0} | _SLIDING,
    "smollm3": {"num_hidden_layers": 4, "tie_word_embeddings": True},
    "falcon_h1": {"num_hidden_layers": 2, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
    | {"mamba_chunk_size": 8, "mamba_rms_norm": True, "lm_head_multiplier": 0.25, "embedding_multiplier": 2.0},
}


@pytest.fixture(scope="session")
def family_maker() -> Callable[..., Any]:
    """family_maker(family, **config) -> a tiny random model with logits that differ enough to be worth comparing."""

    def make(family: str, **overrides: Any) -> Any:
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **(_TINY | {"attn_implementation": "eager"} | FAMILY_CONFIGS[family]))
        for name, value in overrides.items():
            setattr(config, name, value)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3)
        return model

    return make
