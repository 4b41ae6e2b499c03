"""The card of a model: metadata that the Hub reads, the whole lineage, the base's licence; no name can break it."""

from pathlib import Path

import pytest
from engine_runs import MakeRun, of_type
from fusion_core.growth_plan import plan_growth
from fusion_engine.model_card import CARD_FILE, CardFacts, growth_change, model_card
from fusion_engine.run import execute
from huggingface_hub.repocard import metadata_load

CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 8}
FACTS = CardFacts(
    name="physicist",
    base_name="lab/base-1b",
    change="grown in depth from 8 to 12 layers",
    dataset="lectures",
    hyperparams={"lr": 1e-4, "turns": 3, "layers_added": None, "train_scope": "new"},
    results={
        "function_preservation": 0.0,
        "params_after": 1234567,
        "perplexity": {"base": 12.5, "turn_1": 9.25},
        "growth_plan": {"axis": "depth", "group": 1},
        "output": "a path",
    },
)


def write_card(folder: Path, text: str) -> Path:
    (folder / CARD_FILE).write_text(text)
    return folder


def test_a_card_tells_how_the_model_was_made(tmp_path: Path) -> None:
    write_card(tmp_path, "---\nlicense: apache-2.0\nlanguage: [en]\n---\n# The base\n")
    card = model_card(tmp_path, FACTS)
    assert "physicist is lab/base-1b, grown in depth from 8 to 12 layers." in card
    for row in ("| lr | 0.0001 |", "| turns | 3 |", "| function_preservation | 0 |", "| params_after | 1,234,567 |"):
        assert row in card
    assert "| perplexity, turn_1 | 9.25 |" in card
    assert "That of lab/base-1b: apache-2.0." in card
    for absent in ("layers_added", "growth_plan", "a path"):
        assert absent not in card
    write_card(tmp_path, card)
    metadata = metadata_load(tmp_path / CARD_FILE)
    assert metadata is not None
    assert (metadata["license"], metadata["base_model"]) == ("apache-2.0", "lab/base-1b")


def test_the_lineage_grows_with_every_step(tmp_path: Path) -> None:
    write_card(tmp_path, model_card(tmp_path, FACTS))
    card = model_card(tmp_path, CardFacts(name="smaller", base_name="physicist", change="contracted by 25 %"))
    assert "1. from lab/base-1b: grown in depth from 8 to 12 layers\n2. from physicist: contracted by 25 %" in card


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no metadata",
        "---\n: [\n---\n",
        "---\n- a list\n---\n",
        "---\nlicense: 3\n---\n",
        "x" * 2**21,
        "---\n\x00\n---\n",
    ],
)
def test_a_base_card_that_says_nothing_is_no_obstacle(tmp_path: Path, text: str) -> None:
    card = model_card(write_card(tmp_path, text), FACTS)
    assert "names no licence: find out which it has" in card


def test_names_of_customers_stay_on_their_line(tmp_path: Path) -> None:
    name = "evil\n---\nlicense: mit\n---\n# <b>| x"
    card = model_card(tmp_path, CardFacts(name=name, base_name=name, change="grown", dataset=name))
    write_card(tmp_path, card)
    metadata = metadata_load(tmp_path / CARD_FILE)
    assert metadata is not None
    assert "license" not in metadata
    assert "base_model" not in metadata
    assert metadata["fusion"]["lineage"][0]["start"] == name
    assert "<b>" not in card.split("\n---\n", 1)[1]


def test_the_clause_of_each_growth() -> None:
    assert growth_change(plan_growth(CONFIG, layers_added=2)).startswith("grown in depth from 8 to 10 layers (")
    assert "from 11,008 to " in growth_change(plan_growth(CONFIG, axis="width"))
    tied = plan_growth(CONFIG | {"tie_word_embeddings": True}, layers_added=2, own_head=True)
    assert growth_change(tied).startswith("grown in depth from 8 to 10 layers with an output head of its own (")
    assert growth_change(plan_growth(CONFIG, growth_factor=1.0)).startswith("trained further without growth (")


def test_a_jobs_model_carries_its_card(make_run: MakeRun, copy_base: Path) -> None:
    write_card(copy_base, "---\nlicense: cc-by-4.0\n---\n")
    run_dir = make_run("run", base=copy_base, output_name="grower", base_name="tiny", dataset_name="rows")
    execute(run_dir)
    card = (run_dir / "export" / CARD_FILE).read_text()
    result = of_type(run_dir, "Finished")[0].result
    assert "grower is tiny, grown in depth from 3 to 4 layers with an output head of its own (" in card
    assert "## Data\n\nrows\n" in card
    assert "| seq_len | 16 |" in card
    assert f"| perplexity, turn_2 | {result['perplexity']['turn_2']:.6g} |" in card
    assert "That of tiny: cc-by-4.0." in card
    files = {file.rel: file for file in of_type(run_dir, "ExportSaved")[0].manifest.files}
    assert files[CARD_FILE].size == len(card.encode())
