"""`fusion-engine train`: grow a model and train what was added, on this machine, from JSONL to a model folder."""

import argparse
import sys
from pathlib import Path
from typing import Any

from fusion_core.job_spec import Hyperparams, settle
from fusion_core.trainer_protocol import Rejected, SampleRun, TrainRun, write_run

from fusion_engine.commands import Subparsers
from fusion_engine.commands.hyperparam_options import add_hyperparam_options, hyperparams_from, refuse_faults
from fusion_engine.commands.parser import not_negative
from fusion_engine.commands.paths import check_paths, work_folder_of
from fusion_engine.commands.process_options import add_process_options, check_processes
from fusion_engine.model_config import check_seq_len, plan_of, read_config
from fusion_engine.outcomes import RejectedError

_DESCRIPTION = """\
Grow SRC, train it on DATA and write the result to DST, an ordinary Hugging Face folder. SRC is only read.

DATA is JSONL with a row on each line, or plain text with a row a paragraph; a folder means its .jsonl and .txt files.
  {"text": "..."}                                    text to learn
  {"prompt": "...", "completion": "..."}             only the completion is learned
  {"messages": [{"role": "user", "content": ...}]}   only the assistant's turns are learned; needs a chat template
Two rows of a hundred are held out, and the perplexity on them is printed as training goes.

By default only the added layers learn and a fifth of the rows rehearse text that SRC wrote itself, so that SRC's
knowledge stays. That text is sampled first (--pool-rows); --pool takes one that another training has sampled.

Ctrl-C saves a checkpoint and stops; the same command goes on from there and ends with the same weights as if nothing
had happened. What that needs is kept in DST.run and deleted at the end.
"""
_EPILOG = """\
examples:
  fusion-engine train ./Llama-3.2-1B manual.jsonl ./ours                      the defaults: 6 cycles of 1000 updates
  fusion-engine train ./Llama-3.2-1B *.jsonl ./ours --turns 3 --batch-size 8 --seq-len 1024
  fusion-engine train ./ours more.jsonl ./ours2 --growth-factor 1.0     no growth, everything learns
  fusion-engine train ./Llama-3.2-1B manual.jsonl ./ours --processes 8 --batch-size 8        a process for each GPU

Every hyperparameter has its reasons in docs/training.md.
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="grow a model and train it on JSONL",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="SRC", type=Path, help="a model folder: config.json, safetensors, tokenizer")
    parser.add_argument("data", metavar="DATA", type=Path, nargs="+", help="files or folders")
    parser.add_argument("destination", metavar="DST", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--heldout", metavar="FILE", type=Path, help="JSONL to measure on, in place of a part of DATA")
    parser.add_argument("--rehearsal", metavar="FILE", type=Path, action="append", default=[], help="JSONL to rehearse")
    parser.add_argument("--pool", metavar="FILE", type=Path, action="append", default=[], help="text sampled from SRC")
    parser.add_argument(
        "--pool-rows",
        metavar="N",
        type=not_negative,
        default=768,
        help="rows to sample from SRC where none are given; 0: none",
    )
    add_process_options(parser)
    add_hyperparam_options(parser, Hyperparams, "output_name")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    hyperparams = _settled(arguments)
    config = read_config(arguments.model)
    plan = plan_of(
        config,
        growth_factor=hyperparams.growth_factor,
        layers_added=hyperparams.layers_added,
        axis=hyperparams.growth_axis,
        placement="even" if hyperparams.growth_placement == "even" else "upper",
        own_head=hyperparams.own_head,
    )
    check_seq_len(config, hyperparams.seq_len)
    others = [*arguments.rehearsal, *arguments.pool, *filter(None, [arguments.heldout])]
    check_paths(arguments.destination, [*arguments.data, *others])

    from fusion_engine.commands.check_rows import check_rows
    from fusion_engine.commands.local_attempt import common_fields, conclude, work_off
    from fusion_engine.commands.work_folder import named_shards, split_rows

    destination = arguments.destination.resolve()
    folder = work_folder_of(destination)
    shards = named_shards(arguments.data, folder)
    check_rows(arguments.model, shards, others, hyperparams.seq_len)
    train, heldout = split_rows(shards, folder)
    run = TrainRun(
        **common_fields(arguments, destination),
        train_shards=(str(train),),
        heldout_shards=(str(arguments.heldout.resolve() if arguments.heldout else heldout),),
        rehearsal_files=tuple(str(path.resolve()) for path in arguments.rehearsal),
        pool_files=_pool(arguments, hyperparams, folder),
        hyperparams=hyperparams,
        growth_plan=plan,
    )
    return conclude(work_off(folder, run, hyperparams.total_steps), folder, destination, _tell)


def _settled(arguments: argparse.Namespace) -> Hyperparams:
    """Raises RejectedError validation_failed for options that are out of bounds or contradict each other."""
    hyperparams, faults = settle(hyperparams_from(arguments, Hyperparams), vars(arguments))
    refuse_faults(faults)
    check_processes(arguments, hyperparams.batch_size)
    return hyperparams


def _pool(arguments: argparse.Namespace, hyperparams: Hyperparams, folder: Path) -> tuple[str, ...]:
    """Pool files to rehearse: those given, or one sampled from the base now if it was not before."""
    if arguments.pool or arguments.rehearsal or not arguments.pool_rows or not hyperparams.replay_fraction:
        return tuple(str(path.resolve()) for path in arguments.pool)

    from fusion_engine.run import execute
    from fusion_engine.run_directory import POOL_FOLDER
    from fusion_engine.sample import POOL_FILE

    sampling = folder / f"sample-{arguments.pool_rows}-{hyperparams.seq_len}-{hyperparams.seed}"
    pool = sampling / POOL_FOLDER / POOL_FILE
    if not pool.exists():
        sampling.mkdir(parents=True, exist_ok=True)
        print(f"sampling {arguments.pool_rows} rows of text from {arguments.model} to rehearse", file=sys.stderr)
        run = SampleRun(
            job_id="pool",
            lease_epoch=1,
            base_dir=str(arguments.model.resolve()),
            threads=arguments.threads,
            rows=arguments.pool_rows,
            seq_len=hyperparams.seq_len,
            seed=hyperparams.seed,
        )
        write_run(sampling, run)
        outcome = execute(sampling)
        if isinstance(outcome, Rejected):
            raise RejectedError(outcome.code, outcome.message, outcome.errors)
    return (str(pool),)


def _tell(result: dict[str, Any]) -> None:
    print(f"perplexity  {result['perplexity_before']:.2f} -> {result['perplexity_after']:.2f} on held-out rows")
    if result.get("retention_perplexity_after") is not None:
        before, after = result["retention_perplexity_before"], result["retention_perplexity_after"]
        print(f"retention   {before:.2f} -> {after:.2f} on text that the base wrote")
