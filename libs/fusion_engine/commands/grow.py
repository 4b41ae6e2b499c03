"""`fusion-engine grow`: a larger model that computes what the base computes, as an ordinary folder of safetensors."""

import argparse
import sys
from pathlib import Path

import msgspec
from fusion_core.growth_plan import GrowthPlan

from fusion_engine.commands import Subparsers
from fusion_engine.commands.growth_options import add_growth_options, describe, plan_from
from fusion_engine.commands.paths import check_paths
from fusion_engine.files import complete_or_absent
from fusion_engine.model_config import read_config, read_shape

_PROMPTS = 3  # of random ids, beside the guard's own
_DESCRIPTION = """\
Grow SRC into DST. The grown model has more layers, or wider FFNs, and computes exactly what SRC computes until it is
trained: new layers start as copies that write nothing, new channels as copies that are not yet listened to.

Weights stream from file to file, so growing takes a few tens of MB of memory whatever the model's size. The check
loads both models, one after the other, in fp32: 4 bytes a parameter; DST appears only once it has passed. DST loads
with transformers' AutoModelForCausalLM.from_pretrained and can be grown again.
"""
_EPILOG = """\
examples:
  fusion-engine grow ./Llama-3.2-1B ./grown                      half again as many parameters, by depth
  fusion-engine grow ./gemma-2-2b ./grown --layers-added 4       so many layers
  fusion-engine grow ./Qwen3-0.6B ./grown --axis width           wider FFNs: the same layers, the same KV cache
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "grow",
        help="write a larger model that computes the same",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="SRC", type=Path, help="a model folder: config.json and safetensors")
    parser.add_argument("destination", metavar="DST", type=Path, help="a folder that does not exist yet")
    add_growth_options(parser)
    parser.add_argument("--no-check", action="store_true", help="do not compare the logits of SRC and DST in fp32")
    parser.add_argument("--json", action="store_true", help="print plan and check as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    source, destination = arguments.model, arguments.destination
    check_paths(destination)
    config = read_config(source)
    plan = plan_from(config, arguments)
    if not arguments.json:
        print(describe(read_shape(config), plan))
    with complete_or_absent(destination) as partial:
        _grow(source, plan, partial)
        difference = None if arguments.no_check else _check(source, partial)
        _write_card(source, plan, partial, destination.resolve().name, difference)
    if arguments.json:
        report = {"model": str(destination), "function_preservation": difference, "plan": plan}
        print(msgspec.json.encode(report).decode())
        return 0
    if difference is not None:
        print(f"checked     max |logit difference| {difference} on {_PROMPTS + 1} prompts, in fp32")
    print(f"written     {destination}")
    return 0


def _grow(source: Path, plan: GrowthPlan, folder: Path) -> None:
    from tqdm import tqdm

    from fusion_engine.base_folder import has_tokenizer, load_tokenizer, open_base
    from fusion_engine.grow import grow, grown_tensors
    from fusion_engine.safetensors_stream import total_bytes

    base = open_base(source, plan)
    if has_tokenizer(source):
        load_tokenizer(base)  # refuses one that does not fit the embedding
    total = total_bytes(grown_tensors(base, plan))
    with tqdm(total=total, unit="B", unit_scale=True, desc="growing", disable=None, file=sys.stderr) as bar:
        grow(base, plan, folder, wrote=bar.update)


def _check(source: Path, grown: Path) -> float:
    """max |logit difference|, which is 0.0. Raises RejectedError growth_not_preserving for any other."""
    import numpy as np
    import torch

    from fusion_engine.guard import PROMPT_TOKENS, check_growth, guard_prompts

    vocabulary = read_shape(read_config(source)).vocab
    rows = np.random.default_rng(0).integers(vocabulary, size=(_PROMPTS, PROMPT_TOKENS), dtype=np.int32)
    return check_growth(source, grown, guard_prompts(list(rows), vocabulary), torch.device("cpu"))


def _write_card(source: Path, plan: GrowthPlan, folder: Path, name: str, difference: float | None) -> None:
    from fusion_engine.model_card import CARD_FILE, CardFacts, growth_change, model_card

    facts = CardFacts(
        name=name,
        base_name=source.resolve().name,
        change=f"{growth_change(plan)}; not trained yet, so it computes what its base computes",
        results={} if difference is None else {"function_preservation": difference},
    )
    (folder / CARD_FILE).write_text(model_card(source, facts))
