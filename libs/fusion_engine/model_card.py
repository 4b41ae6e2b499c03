"""The README.md of an exported model: where it comes from, how it was made, how good it is, under which licence.

Its head is the metadata that the Hugging Face Hub reads (https://huggingface.co/docs/hub/model-cards). The lineage is
kept there too, so that a model made of a model of Fusion lists every step since the first base. Equal runs give equal
cards: no time, no job, no machine.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from fusion_core.contraction_plan import ContractionPlan
from fusion_core.growth_plan import GrowthPlan
from fusion_core.trainer_protocol import ContractRun, FinetuneRun, Manifest, TrainRun
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from fusion_engine.files import add_to_folder

CARD_FILE = "README.md"
_CARD_LIMIT_BYTES = 1024 * 1024
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```"""


class Step(msgspec.Struct, frozen=True):
    """One step of a model's lineage: the model it started from, by name, and what was done to it."""

    start: str
    change: str


class _FusionMetadata(msgspec.Struct):
    lineage: Annotated[list[Step], msgspec.Meta(max_length=100)]


class _BaseMetadata(msgspec.Struct):
    """What a card takes over from the card of its base; any of it may be missing."""

    license: str | list[str] | None = None
    license_name: str | None = None
    license_link: str | None = None
    fusion: _FusionMetadata | None = None


class CardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the card of a model says. `results` are figures, or tables of figures; anything else in it is left out."""

    name: str
    base_name: str
    change: str
    dataset: str = ""
    hyperparams: Mapping[str, object] = {}
    results: Mapping[str, object] = {}


def growth_change(plan: GrowthPlan) -> str:
    """The change that `plan` makes, as one clause."""
    sizes = f"({plan.params_before:,} to {plan.params_after:,} parameters)"
    if plan.own_head:
        sizes = f"with an output head of its own {sizes}"
    if plan.axis == "width":
        return f"grown in width from {plan.ffn_before:,} to {plan.ffn_after:,} FFN channels {sizes}"
    if plan.new_after:
        return f"grown in depth from {plan.layers_before} to {plan.layers_after} layers {sizes}"
    return f"trained further without growth ({plan.params_after:,} parameters)"


def contraction_change(plan: ContractionPlan) -> str:
    """The change that `plan` makes, as one clause."""
    sizes = f"({plan.params_before:,} to {plan.params_after:,} parameters)"
    return f"contracted from {plan.ffn_before:,} to {plan.ffn_after:,} FFN channels and healed {sizes}"


def model_card(base: Path, facts: CardFacts) -> str:
    """The text of README.md for a model made of the one in `base`, whose own card names licence and lineage."""
    inherited = _read_metadata(base / CARD_FILE)
    earlier = inherited.fusion.lineage if inherited.fusion else []
    steps = [*earlier, Step(facts.base_name, facts.change)]
    sections = {
        "Use": _USE,
        "Lineage": "\n".join(f"{n}. from {_line(step.start)}: {_line(step.change)}" for n, step in enumerate(steps, 1)),
        "Data": _line(facts.dataset),
        "Hyperparameters": _table(facts.hyperparams.items()),
        "Results": _table(_figures(facts.results)),
        "Licence": _licence(inherited, facts.base_name),
    }
    body = "".join(f"\n## {heading}\n\n{text}\n" for heading, text in sections.items() if text)
    intro = f"{_line(facts.name)} is {_line(facts.base_name)}, {_line(facts.change)}. Made with Fusion."
    return f"---\n{_metadata(inherited, facts, steps)}\n---\n\n# {_line(facts.name)}\n\n{intro}\n{body}"


def add_card(
    folder: Path,
    manifest: Manifest,
    run: TrainRun | FinetuneRun | ContractRun,
    change: str,
    results: Mapping[str, object],
) -> Manifest:
    """Put the card of a job's model into its exported folder; the manifest with it."""
    facts = CardFacts(
        name=run.output_name or "This model",
        base_name=run.base_name or "its base",
        change=change,
        dataset=run.dataset_name,
        hyperparams=msgspec.to_builtins(run.hyperparams),
        results=results,
    )
    return add_to_folder(folder, manifest, {CARD_FILE: model_card(Path(run.base_dir), facts).encode()})


def _metadata(inherited: _BaseMetadata, facts: CardFacts, steps: list[Step]) -> str:
    data = ModelCardData(
        base_model=facts.base_name if _HUB_NAME.fullmatch(facts.base_name) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=inherited.license,  # type: ignore[arg-type]  # the Hub allows a list
        license_name=inherited.license_name,
        license_link=inherited.license_link,
        tags=["fusion"],
        fusion=msgspec.to_builtins(_FusionMetadata(steps)),
    )
    return data.to_yaml()


def _read_metadata(card: Path) -> _BaseMetadata:
    """What the base's card says; a card that is missing or that nobody can read says nothing."""
    try:
        if card.stat().st_size > _CARD_LIMIT_BYTES:
            return _BaseMetadata()
        return msgspec.convert(metadata_load(card) or {}, _BaseMetadata)
    except (OSError, ValueError, yaml.YAMLError):
        return _BaseMetadata()


def _licence(inherited: _BaseMetadata, base_name: str) -> str:
    if inherited.license is None:
        return f"The card of {_line(base_name)} names no licence: find out which it has before you pass this model on."
    licences = [inherited.license] if isinstance(inherited.license, str) else inherited.license
    known = [", ".join(licences), inherited.license_name or "", inherited.license_link or ""]
    return f"That of {_line(base_name)}: {_line('; '.join(text for text in known if text))}."


def _figures(results: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in results.items():
        if isinstance(value, Mapping):
            if all(isinstance(inner, int | float) for inner in value.values()):
                yield from ((f"{name}, {key}", inner) for key, inner in value.items())
        elif isinstance(value, int | float):
            yield name, value


def _table(rows: Iterable[tuple[str, object]]) -> str:
    lines = [f"| {name} | {_shown(value)} |" for name, value in rows if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def _shown(value: object) -> str:
    return f"{value:,}" if type(value) is int else f"{value:.6g}" if isinstance(value, float) else _line(str(value))


def _line(text: str) -> str:
    """Text of customers on one line of Markdown, without markup of its own."""
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", " ".join(text.split()))
