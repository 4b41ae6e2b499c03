"""Tokens per CPU-second of Fusion's loop, transformers' Trainer and TRL: `python bench/throughput.py [--rounds N]`.

One Llama of 6 layers of 256 and a vocabulary of 8192, grown by the default, which gives a tied model a head of its own
(`--tied` grows by layers alone), the same documents, batch, optimizer, clipping and precision, one thread. Each
contender runs in a process forked for it, and the rounds are interleaved, so that what else the machine does strikes
all alike; CPU seconds and not wall seconds count. Tokens are those of documents, without padding.

    fusion deep        everything learns, as train_scope all, which keeps a tied head tied: see --tied
    fusion new         only what was added learns, as train_scope new
    fusion rehearsing  the same, a fifth of the rows taught by the base's softmax: Fusion's default
    trainer packed     documents joined and cut into full rows
    trainer padded     a document a row, padded to the longest of its batch
    trl packed         SFTTrainer, packing=True

The others train all weights of the same grown model and rehearse nothing.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import Clock, new_parameters, train_with_fusion, train_with_hugging_face
from fusion_core.growth_plan import GrowthPlan, plan_growth
from fusion_core.job_spec import Hyperparams
from fusion_engine.data_order import TrainingRows
from fusion_engine.grow import new_blocks
from fusion_engine.objective import next_token_loss
from fusion_engine.packing import PackedRows, pack
from fusion_engine.self_distillation import PassedBlocks, base_inside, self_distillation_loss
from fusion_engine.tokenize_rows import Document
from transformers import LlamaConfig, LlamaForCausalLM

SEQ_LEN, BATCH, VOCABULARY, EOS, WARMUP = 256, 4, 8192, 1, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def documents(count: int) -> list[list[int]]:
    """Random ids in documents of 20 to 255, most of them short, as paragraphs are; each ends with EOS."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.4, 0.6, count), 19, SEQ_LEN - 2).astype(int)
    return [[*random.integers(2, VOCABULARY, length).tolist(), EOS] for length in lengths]


def grown(plan: GrowthPlan) -> LlamaForCausalLM:
    """The grown model, random: what is learned has no say here."""
    torch.manual_seed(0)
    settings = {name: value for name, value in CONFIG.items() if name != "architectures"}
    settings |= {"num_hidden_layers": plan.layers_after, "tie_word_embeddings": not plan.own_head}
    return LlamaForCausalLM(LlamaConfig(**settings))


def fusion(plan: GrowthPlan, steps: int, folder: Path, *, deep: bool, rehearsing: bool = False) -> tuple[Clock, float]:
    pack((_document(ids) for ids in documents(steps * BATCH * 4)), folder, "train", SEQ_LEN, join=True)
    packed, pool = PackedRows(folder, "train", SEQ_LEN), _pool(folder) if rehearsing else None
    rows = TrainingRows(packed, None, settings(steps).replay_fraction, seed=0, pool=pool)
    model = grown(plan)
    parameters = dict(model.named_parameters()) if deep else new_parameters(model, plan)
    loss_of = next_token_loss
    if rehearsing:
        blocks = PassedBlocks(model.model.layers, new_blocks(plan))
        loss_of = self_distillation_loss(base_inside(blocks.passed, own_head=plan.own_head))
    clock = train_with_fusion(model, parameters, rows, settings(steps), folder, loss_of=loss_of)
    taken = [rows.batch(step * BATCH, BATCH, 0, 1) for step in range(WARMUP, steps)]
    return clock, statistics.mean(int((batch.input_ids != 0).sum()) for batch in taken)


def _pool(folder: Path) -> PackedRows:
    """Rows as a base samples them: each is full."""
    ids = np.random.default_rng(1).integers(2, VOCABULARY, (64, SEQ_LEN)).tolist()
    return pack((_document(row) for row in ids), folder, "pool", SEQ_LEN, join=True)


def _document(ids: list[int]) -> Document:
    trained = np.ones(len(ids), dtype=np.bool_)
    trained[0] = False
    return Document(np.array(ids, dtype=np.int32), trained, whole=False)


def trainer_packed(plan: GrowthPlan, steps: int, folder: Path) -> tuple[Clock, float]:
    joined = [token for ids in documents(steps * BATCH * 4) for token in ids]
    rows = [joined[start : start + SEQ_LEN] for start in range(0, steps * BATCH * SEQ_LEN, SEQ_LEN)]
    examples = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in rows]
    clock = train_with_hugging_face(grown(plan), examples, None, settings(steps), folder)
    return clock, BATCH * SEQ_LEN


def trainer_padded(plan: GrowthPlan, steps: int, folder: Path) -> tuple[Clock, float]:
    lengths: list[int] = []

    def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        lengths.append(sum(len(row["input_ids"]) for row in rows))
        ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    rows = [{"input_ids": ids} for ids in documents(steps * BATCH)]
    clock = train_with_hugging_face(grown(plan), rows, pad, settings(steps), folder, remove_unused_columns=False)
    return clock, statistics.mean(lengths[WARMUP:])


def trl_packed(plan: GrowthPlan, steps: int, folder: Path) -> tuple[Clock, float]:
    from contenders import _Ticks
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {"<pad>": 0, "<eos>": EOS} | {f"w{number}": number for number in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))  # noqa: S106 - a token of text
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")  # noqa: S106 - text
    clock = Clock()
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        max_length=SEQ_LEN,
        packing=True,
        optim="adamw_torch_fused",
        lr_scheduler_type="cosine",
        learning_rate=settings(steps).lr,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=10**9,
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"input_ids": documents(steps * BATCH * 4)})
    trainer = SFTTrainer(
        grown(plan), args=arguments, train_dataset=data, processing_class=fast, callbacks=[_Ticks(clock)]
    )
    rows = trainer.train_dataset
    trainer.train()
    return clock, BATCH * statistics.mean(len(row["input_ids"]) for row in rows)


def settings(steps: int) -> Hyperparams:
    return Hyperparams(cycles=1, train_steps=steps, seq_len=SEQ_LEN, batch_size=BATCH, train_scope="all")


CONTENDERS: dict[str, Callable[[GrowthPlan, int, Path], tuple[Clock, float]]] = {
    "fusion deep": partial(fusion, deep=True),
    "fusion new": partial(fusion, deep=False),
    "fusion rehearsing": partial(fusion, deep=False, rehearsing=True),
    "trainer packed": trainer_packed,
    "trainer padded": trainer_padded,
    "trl packed": trl_packed,
}


def measure(name: str, plan: GrowthPlan, steps: int) -> dict[str, float]:
    """One contender in a process of its own: CPU seconds and tokens a step, and memory above the start's, in MB."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
            before = _memory("VmRSS")
            clock, tokens = CONTENDERS[name](plan, steps, Path(folder))
            _, cpu = clock.seconds_per_step(WARMUP)
            sender.send({"cpu": cpu, "tokens": tokens, "memory": _memory("VmHWM") - before})

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    sender.close()
    found: dict[str, float] = receiver.recv()
    process.join()
    return found


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def rows_of_table(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    yield "| contender | tokens per CPU-second | CPU-s a step | peak memory, MB | against trainer packed |"
    yield "|---|---|---|---|---|"
    for name, runs in found.items():
        ratios = [
            (run["tokens"] / run["cpu"]) / (packed["tokens"] / packed["cpu"])
            for run, packed in zip(runs, found["trainer packed"], strict=True)
        ]
        rate, cpu, memory = (
            statistics.median(values)
            for values in zip(*((run["tokens"] / run["cpu"], run["cpu"], run["memory"]) for run in runs), strict=True)
        )
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"| {name} | {rate:,.0f} | {cpu:.3f} | {memory:,.0f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that each contender runs (%(default)s)")
    parser.add_argument("--steps", type=int, default=14, help=f"steps of each, {WARMUP} not measured (%(default)s)")
    parser.add_argument("--tied", action="store_true", help="grow by layers alone and leave the head tied")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = plan_growth(CONFIG, own_head=False if arguments.tied else None)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(arguments.rounds):
        for name, runs in found.items():
            runs.append(measure(name, plan, arguments.steps))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    head = "a head of its own" if plan.own_head else "its head tied"
    print(
        f"{plan.layers_before} -> {plan.layers_after} layers, {head}: {plan.params_before:,} -> {plan.params_after:,}"
        f" parameters; {arguments.rounds} interleaved rounds of {arguments.steps} steps, medians; rows of {SEQ_LEN},"
        f" batch {BATCH}\n"
    )
    print("\n".join(rows_of_table(found)))


if __name__ == "__main__":
    main()
