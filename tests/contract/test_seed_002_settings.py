"""'Settings reference': defaults and ranges, from the OpenAPI document; the cost equation, from an estimate."""

from typing import Any

import pytest

from tests.integration.api.documented import document


def settings(name: str) -> dict[str, Any]:
    found: dict[str, Any] = document()["components"]["schemas"][name]["properties"]
    return found


def test_defaults_at_a_glance() -> None:
    training = {name: settings("Hyperparams")[name]["default"] for name in ("turns", "cycles", "steps_per_cycle")}
    assert training == {"turns": 1, "cycles": 6, "steps_per_cycle": 1000}
    assert settings("ContractSettings")["contraction_ratio"]["default"] == 0.5
    assert settings("ContractSettings")["num_layers_to_contract"]["default"] is None  # 8, or the depth if less


def test_other_defaults() -> None:
    assert settings("Hyperparams")["lr"]["default"] == 1e-4
    assert settings("Hyperparams")["seq_len"]["default"] == 256
    assert settings("Hyperparams")["output_name"]["default"] is None
    finetune = {name: settings("FinetuneSettings")[name]["default"] for name in ("lora_rank", "steps")}
    assert finetune == {"lora_rank": 32, "steps": 2000}


@pytest.mark.parametrize(
    ("schema", "name", "least", "most"),
    [("Hyperparams", "turns", 1, 10), ("ContractSettings", "contraction_ratio", 0.1, 0.9)],
)
def test_ranges(schema: str, name: str, least: float, most: float) -> None:
    found = settings(schema)[name]
    assert (found["minimum"], found["maximum"]) == (least, most)


def test_a_contraction_names_its_source() -> None:
    assert "source_model_id" in document()["components"]["schemas"]["ContractSettings"]["required"]


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ({}, 6 * 1000 * 256),
        ({"turns": 3, "cycles": 2, "steps_per_cycle": 700, "seq_len": 512}, 3 * 2 * 700 * 512),
        ({"turns": 2, "train_steps": 5000}, 2 * 5000 * 256),
        ({"turns": 2, "train_steps": 5000, "cycles": 9}, 2 * 5000 * 256),
    ],
)
async def test_the_cost_equation(customer: Any, said: dict[str, int], tokens: int) -> None:
    """turns x cycles x steps_per_cycle x seq_len; `train_steps` takes the place of the two in the middle."""
    body = {"params_before": 1_500_000_000, "params_after": 2_360_000_000, **said}
    estimate = (await customer.send("POST", "/api/pricing/estimate", json=body)).json()
    assert estimate["line_items"][0]["qty"] == tokens


@pytest.mark.parametrize(("said", "layers"), [({}, 4), ({"num_layers_to_contract": 3}, 3)])
async def test_a_contraction_takes_eight_layers_or_all_there_are(
    customer: Any, base_model_id: str, said: dict[str, int], layers: int
) -> None:
    """The source has four layers."""
    hyperparams = {"source_model_id": await customer.model(base_model_id), **said}
    body = {"type": "contract", "idempotency_key": "shrink", "hyperparams": hyperparams}
    created = await customer.send("POST", "/api/jobs", json=body)
    assert created.status_code == 201
    shown = (await customer.send("GET", f"/api/jobs/{created.json()['id']}")).json()
    assert shown["hyperparams"]["num_layers_to_contract"] == layers
    assert shown["hyperparams"]["contraction_ratio"] == 0.5
