"""The demo's base model: three million parameters, trained for a minute on Python's own documentation.

Deterministic per Python version; made once and kept in the data folder.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from fusion_local.demo.texts import documentation, write_rows

VOCABULARY = 3072
STEPS, BATCH, SEQ_LEN = 200, 8, 256
PEAK_LR = 3e-3
REHEARSAL_ROWS = 1500
REHEARSAL = "rehearsal.jsonl"
FINISHED = "finished"


def build_base_model(folder: Path, console: Console) -> Path:
    """The model's folder, its rehearsal rows beside it; complete or made anew."""
    model = folder / "demo-llama-3m"
    if (folder / FINISHED).exists():
        return model
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ours is below
    shutil.rmtree(folder, ignore_errors=True)
    model.mkdir(parents=True)
    torch.manual_seed(0)
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    texts = documentation()
    tokenizer = _train_tokenizer(texts)
    tokenizer.save_pretrained(model)
    write_rows(folder / REHEARSAL, texts[:: max(1, len(texts) // REHEARSAL_ROWS)])
    _train(tokenizer, texts, console).save_pretrained(model)
    (folder / FINISHED).touch()
    return model


def _train_tokenizer(texts: list[str]) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")  # noqa: S106 - a token of text


def _train(tokenizer: Any, texts: list[str], console: Console) -> LlamaForCausalLM:
    end = tokenizer.eos_token_id
    ids = [np.asarray([*row, end], np.int64) for row in tokenizer(texts)["input_ids"]]
    stream = torch.from_numpy(np.concatenate(ids))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, STEPS, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("training the demo's base model on Python's documentation", total=STEPS)
        for _ in range(STEPS):
            starts = torch.randint(len(stream) - SEQ_LEN, (BATCH,), generator=generator)
            batch = torch.stack([stream[start : start + SEQ_LEN] for start in starts.tolist()])
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.update(bar, advance=1)
    model.eval()
    return model  # type: ignore[no-any-return]  # transformers' classes are untyped here
