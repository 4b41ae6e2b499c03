"""`fusion-engine contract`: a narrower model, healed by distillation from its source, as a folder of safetensors."""

import argparse
from pathlib import Path
from typing import Any

import msgspec
from fusion_core.contraction_plan import RATIO_MAX, RATIO_MIN, ContractionPlan, plan_contraction
from fusion_core.job_spec import ContractHyperparams
from fusion_core.trainer_protocol import ContractRun

from fusion_engine.commands import Subparsers
from fusion_engine.commands.hyperparam_options import MEANINGS, add_hyperparam_options, hyperparams_from
from fusion_engine.commands.paths import check_paths, work_folder_of
from fusion_engine.commands.process_options import add_process_options, check_processes
from fusion_engine.model_config import check_seq_len, read_config, read_shape
from fusion_engine.outcomes import RejectedError

_OPTIONS_OF_THEIR_OWN = ("contraction_ratio", "num_layers_to_contract", "output_name")
_MEANINGS = {
    **MEANINGS,
    "train_steps": "updates of healing",
    "importance": "how FFN channels are ranked",
    "lr": "peak learning rate of healing",
}
_DESCRIPTION = """\
Contract SRC into DST: remove the FFN channels that matter least, then heal the rest by distillation from SRC. SRC is
only read; DST is an ordinary Hugging Face folder of the same family, with narrower FFNs.

A ratio R of the channels of N layers is the request. All layers of a model have one width, so that plain transformers
loads it: every layer loses R * N / depth of its channels, rounded to a multiple of 128 (of 8 below 2048 channels).

No data is needed: SRC writes the text that its channels are ranked and DST is healed on. With --data both are done on
your text too, and what SRC wrote is measured beside it.

Ctrl-C saves a checkpoint and stops; the same command goes on from there and ends with the same weights as if nothing
had happened. What that needs is kept in DST.run and deleted at the end.
"""
_EPILOG = """\
examples:
  fusion-engine contract ./ours ./small                                half of the channels of 8 layers
  fusion-engine contract ./ours ./small --plan                         what that would give; loads no weights
  fusion-engine contract ./ours ./small --ratio 0.25 --layers 16       a quarter of the channels of 16 layers
  fusion-engine contract ./ours ./small --data manual.jsonl --train-steps 3000 --batch-size 8

What was measured is in docs/contraction.md.
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "contract",
        help="make a model narrower and heal it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="SRC", type=Path, help="a model folder: config.json, safetensors, tokenizer")
    parser.add_argument("destination", metavar="DST", type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--ratio",
        metavar="R",
        type=float,
        default=0.5,
        help=f"share of the FFN channels, {RATIO_MIN} to {RATIO_MAX} (%(default)s)",
    )
    parser.add_argument("--layers", metavar="N", type=int, help="of so many layers (8, or all of fewer)")
    parser.add_argument("--plan", action="store_true", help="print the plan as JSON and do nothing else")
    parser.add_argument("--data", metavar="DATA", type=Path, nargs="+", default=[], help="JSONL or text files, folders")
    parser.add_argument("--pool", metavar="FILE", type=Path, action="append", default=[], help="text sampled from SRC")
    add_process_options(parser)
    add_hyperparam_options(parser, ContractHyperparams, *_OPTIONS_OF_THEIR_OWN, meanings=_MEANINGS)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = read_config(arguments.model)
    read_shape(config)
    try:
        plan = plan_contraction(config, arguments.ratio, arguments.layers)
    except ValueError as error:
        raise RejectedError("validation_failed", str(error)) from error
    if arguments.plan:
        print(msgspec.json.encode(plan).decode())
        return 0
    hyperparams = msgspec.structs.replace(
        hyperparams_from(arguments, ContractHyperparams),
        contraction_ratio=arguments.ratio,
        num_layers_to_contract=arguments.layers,
    )
    check_processes(arguments, hyperparams.batch_size)
    check_seq_len(config, hyperparams.seq_len)
    check_paths(arguments.destination, [*arguments.data, *arguments.pool])
    print(_describe(plan))

    from fusion_engine.commands.local_attempt import common_fields, conclude, work_off

    destination = arguments.destination.resolve()
    folder = work_folder_of(destination)
    train, heldout = _shards(arguments, folder, hyperparams.seq_len)
    run = ContractRun(
        **common_fields(arguments, destination),
        train_shards=train,
        heldout_shards=heldout,
        pool_files=tuple(str(path.resolve()) for path in arguments.pool),
        hyperparams=hyperparams,
        contraction_plan=plan,
    )
    return conclude(work_off(folder, run, hyperparams.train_steps, "healing"), folder, destination, _tell)


def _shards(arguments: argparse.Namespace, folder: Path, seq_len: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training shards, held-out shards) in the work folder; none of either without data."""
    if not arguments.data:
        return (), ()

    from fusion_engine.commands.check_rows import check_rows
    from fusion_engine.commands.work_folder import named_shards, split_rows

    shards = named_shards(arguments.data, folder)
    check_rows(arguments.model, shards, arguments.pool, seq_len)
    train, heldout = split_rows(shards, folder)
    return (str(train),), (str(heldout),)


def _describe(plan: ContractionPlan) -> str:
    shrinkage = f"{plan.achieved_shrinkage:.2%} fewer, {plan.requested_shrinkage:.2%} asked for"
    return "\n".join(
        [
            f"parameters  {plan.params_before:,} -> {plan.params_after:,}  ({shrinkage})",
            f"FFN width   {plan.ffn_before:,} -> {plan.ffn_after:,} in each of {plan.layers} layers",
        ]
    )


def _tell(result: dict[str, Any]) -> None:
    stages = result["perplexity"]
    print(f"perplexity  {stages['source']:.2f} source, {stages['pruned']:.2f} pruned, {stages['healed']:.2f} healed")
    retention = result["retention_perplexity"]
    if retention:
        figures = ", ".join(f"{value:.2f} {name}" for name, value in retention.items())
        print(f"retention   {figures}, on text that the source wrote")
    print(f"layers      those that would lose least: {', '.join(str(layer) for layer in result['layers'])}")
