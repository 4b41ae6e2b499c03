"""The orchestrator's import, which knows no torch, and the engine accept the same models: one of every family."""

from pathlib import Path

import pytest
from fusion_core.model_shapes import shape_of
from fusion_engine.base_folder import load_model, load_tokenizer, open_base
from fusion_orchestrator.model_folder import verify_model_folder
from tiny_families import FAMILY_MODELS, make_family_model


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_a_model_of_every_family_is_imported(tmp_path: Path, name: str) -> None:
    folder = make_family_model(tmp_path / name, name)
    verified = verify_model_folder(folder)
    base = open_base(folder)
    assert verified.family == shape_of(base.config).family == name.split("-", maxsplit=1)[0]
    assert verified.params == load_model(folder).num_parameters()
    assert verified.precision == "fp32"
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(verified.files)
    load_tokenizer(base)
