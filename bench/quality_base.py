"""The bench's base model, made once: 1.4M parameters that know domains A and C; and its pool of sampled rows."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fusion_core.trainer_protocol import SampleRun, write_run
from numpy.typing import NDArray
from quality_texts import domains, split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, HIDDEN, FFN, LAYERS = 1024, 128, 320, 6
BATCH, SEQ_LEN, PEAK_LR = 16, 128, 4e-3
PASSES = {"A": 2, "C": 1, "E": 1}  # of each domain's rows in the mixture that the base learns
EOS = "<|end|>"
_FINISHED = "finished"


@dataclass(frozen=True)
class BaseScale:
    """How long the base learns, and how many rows it writes."""

    steps: int = 1500
    pool_rows: int = 768


@dataclass(frozen=True)
class BenchBase:
    """Paths below the cache folder."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "base"

    @property
    def pool(self) -> Path:
        """Rows that the base wrote, but for those in the manner of domain C: nobody rehearses that."""
        return self.folder / "pool.jsonl"

    @property
    def sampled(self) -> Path:
        return self.folder / "sample" / "pool" / "pool.jsonl"

    def rows(self, domain: str, part: str) -> Path:
        """JSONL of a domain's rows; `part` is train or heldout."""
        return self.folder / f"{domain}.{part}.jsonl"


def prepare(folder: Path, scale: BaseScale) -> BenchBase:
    """The base under `folder`, made on first use in a few minutes; complete or made anew."""
    base = BenchBase(folder)
    if (folder / _FINISHED).exists():
        return base
    shutil.rmtree(folder, ignore_errors=True)
    base.model.mkdir(parents=True)
    texts = domains()
    known: list[str] = []
    for domain, rows in texts.items():
        training, heldout = split(rows)
        _write(base.rows(domain, "train"), training)
        _write(base.rows(domain, "heldout"), heldout)
        known += training * PASSES.get(domain, 0)
    tokenizer = _train_tokenizer(known)
    tokenizer.save_pretrained(base.model)
    _pretrain(tokenizer, known, scale.steps).save_pretrained(base.model)
    _sample(base, scale.pool_rows)
    _leave_out("C", base, tokenizer)
    (folder / _FINISHED).touch()
    return base


def _write(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")


def _train_tokenizer(rows: list[str]) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(rows, trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def _pretrain(tokenizer: Any, rows: list[str], steps: int) -> Any:
    end = tokenizer.eos_token_id
    encoded = tokenizer(rows, add_special_tokens=False)["input_ids"]
    documents = [np.asarray([*ids, end], np.int64) for ids in encoded]
    stream = np.concatenate(documents)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
    )
    model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, steps, pct_start=0.05)
    generator = np.random.default_rng(0)
    for _ in trange(steps, desc="base model"):
        batch = _windows(stream, generator)
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def _windows(stream: NDArray[np.int64], generator: np.random.Generator) -> torch.Tensor:
    starts = generator.integers(len(stream) - SEQ_LEN, size=BATCH)
    return torch.from_numpy(np.stack([stream[start : start + SEQ_LEN] for start in starts]))


def _sample(base: BenchBase, rows: int) -> None:
    """The rehearsal pool, by the engine's own sample job."""
    from fusion_engine.run import execute

    run_dir = base.folder / "sample"
    run_dir.mkdir()
    run = SampleRun(
        job_id="bench",
        lease_epoch=1,
        base_dir=str(base.model),
        rows=rows,
        seq_len=SEQ_LEN,
        seed=0,
        threads=torch.get_num_threads(),
    )
    write_run(run_dir, run)
    execute(run_dir)


def _leave_out(domain: str, base: BenchBase, tokenizer: Any) -> None:
    """Write the pool without the rows that are likelier by the frequencies of the domain's ids than by the others'."""
    others = [letter for letter in PASSES if letter != domain]
    excess = _log_frequencies([domain], base, tokenizer) - _log_frequencies(others, base, tokenizer)
    lines = base.sampled.read_text().splitlines(keepends=True)
    base.pool.write_text("".join(line for line in lines if excess[json.loads(line)["ids"]].sum() <= 0))


def _log_frequencies(letters: list[str], base: BenchBase, tokenizer: Any) -> NDArray[np.float64]:
    counts = np.ones(len(tokenizer))
    for letter in letters:
        texts = [json.loads(line)["text"] for line in base.rows(letter, "train").read_text().splitlines()]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            counts += np.bincount(ids, minlength=len(counts))
    return np.log(counts / counts.sum())
