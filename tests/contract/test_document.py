"""The OpenAPI document: valid, complete, and its examples fit its schemas."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import schemathesis
from fusion_core.problems import PROBLEMS
from fusion_core.states import Status

from tests.integration.api.documented import document


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, entry in methods.items():
            yield path, method, entry


def test_the_document_is_openapi_3_1() -> None:
    assert document()["openapi"].startswith("3.1")
    loaded = schemathesis.openapi.from_dict(document())
    assert loaded.statistic.operations.total == len(list(operations())) > 40
    for _, _, entry in operations():
        for answer in entry["responses"].values():
            for content in answer.get("content", {}).values():
                assert jsonschema_rs.meta.is_valid(content["schema"] | {"components": document()["components"]})


def test_operation_ids_are_unique_and_every_operation_has_a_summary() -> None:
    ids = [entry["operationId"] for _, _, entry in operations()]
    assert len(set(ids)) == len(ids)
    assert [entry["operationId"] for _, _, entry in operations() if not entry.get("summary")] == []


def test_every_body_has_an_example_that_fits() -> None:
    for _, _, entry in operations():
        if "requestBody" not in entry:
            continue
        content = entry["requestBody"]["content"]["application/json"]
        assert "example" in content, f"{entry['operationId']}: add `example=` to its route"
        schema = content["schema"] | {"components": document()["components"]}
        jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(content["example"])


def test_every_time_says_that_it_is_one() -> None:
    """A client that is generated from the document reads them as times."""
    members = [
        (name, member, str(schema))
        for name, component in document()["components"]["schemas"].items()
        for member, schema in component.get("properties", {}).items()
    ]
    times = [one for one in members if re.search(r"(_at|_until|_since|^until|^ts|^timestamp)$", one[1])]
    assert [one for one in times if "'format': 'date-time'" not in one[2]] == []
    assert len(times) > 20


# Operations that the product's manual shows an answer of.
SHOWN = {
    "create_job", "list_base_models", "list_models", "download_model", "list_datasets", "presign_upload", "get_metrics",
    "get_result", "list_keys", "create_key", "estimate_price", "get_overview", "get_usage",
}  # fmt: skip


def test_every_answer_of_the_manual_has_an_example_and_every_example_fits() -> None:
    found = set()
    for _, _, entry in operations():
        for status, answer in entry["responses"].items():
            for content in answer.get("content", {}).values():
                examples = [one["value"] for one in content.get("examples", {}).values()]
                if "example" in content:
                    examples.append(content["example"])
                    found.add(entry["operationId"])
                schema = content["schema"] | {"components": document()["components"]}
                for example in examples:
                    faults = jsonschema_rs.Draft202012Validator(schema, validate_formats=True).iter_errors(example)
                    assert [str(fault) for fault in faults] == [], (entry["operationId"], status)
    assert found >= SHOWN


def test_statuses_are_enumerated_in_full() -> None:
    schemas = document()["components"]["schemas"]

    def values(name: str, member: str = "status") -> set[str]:
        found = schemas[name]["properties"][member]
        named = schemas[found["$ref"].rsplit("/", 1)[-1]] if "$ref" in found else found
        return set(named["enum"])

    assert values("Job") == values("JobDetail") == values("ListedJob") == set(Status)
    assert values("Dataset") == values("DatasetReport") == {"validating", "ready", "failed"}
    assert values("Model") == {"ready", "deleted"}
    assert values("Event", "type") > {"queued", "metrics", "checkpoint", "completed", "failed", "stopped", "cancelled"}


def test_no_answer_is_without_a_schema() -> None:
    for _, _, entry in operations():
        for status, answer in entry["responses"].items():
            for content in answer.get("content", {}).values():
                assert content["schema"] not in ({}, {"type": "object"}), (entry["operationId"], status)


def test_bodies_are_closed_and_tell_their_kinds_apart() -> None:
    schemas = document()["components"]["schemas"]
    create = document()["paths"]["/api/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert create["discriminator"]["propertyName"] == "type"
    assert set(create["discriminator"]["mapping"]) == {"train", "finetune", "contract"}
    closed = ("TrainBody", "Hyperparams", "ContractSettings", "FinetuneSettings", "CreateDataset", "EstimateRequest")
    for name in closed:
        assert schemas[name]["additionalProperties"] is False, name


def test_every_code_of_the_registry_that_answers_requests_belongs_to_an_operation() -> None:
    declared = set()
    for _, _, entry in operations():
        for answer in entry["responses"].values():
            problem = answer.get("content", {}).get("application/problem+json")
            declared |= set(problem["examples"]) if problem else set()
    answered = {code for code, one in PROBLEMS.items() if one.status is not None}
    of_admin = {"operator_unauthorized", "forbidden_role", "lease_alive"}  # another port's: docs/admin.md
    # No operation has method_not_allowed: it is what there is instead of one.
    assert answered - declared == {"method_not_allowed"} | of_admin


def test_every_list_is_bounded() -> None:
    for path, method, entry in operations():
        schema = entry["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
        if method == "get" and schema.get("type") == "array":
            names = {parameter["name"] for parameter in entry["parameters"]}
            assert "limit" in names or path.endswith("/lineage"), path
