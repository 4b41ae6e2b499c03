"""The chart: every mode renders to what Kubernetes takes, wrong values are refused by name, pods are locked down."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import HelmError, lint
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

from tests.deploy.chart import CASES, CHART, POOLS, ROOT, STORES, of_kind, pod_specs, render

CRDS = Path(__file__).parent / "crds"
KUBERNETES = ("1.31.0", "1.33.0", "1.35.0")


@pytest.fixture(scope="module", params=CASES)
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(CASES[request.param])


@functools.cache
def crd_validator(api_version: str, kind: str) -> Validator | None:
    """Made once: to check such a schema itself takes a second."""
    group, _, version = api_version.partition("/")
    path = CRDS / f"{kind.lower()}-{version}.json"
    known = json.loads(path.read_text()) if path.exists() else None
    if not known or known["group"] != group:
        return None
    schema = strict(known["schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    kind_of_schema = validator_for(schema)
    kind_of_schema.check_schema(schema)
    return kind_of_schema(schema)


def strict(schema: Any) -> Any:
    """An OpenAPI v3 schema of a CRD as JSON schema, in which a field that it does not name is a fault."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes") and key != "nullable"
    }
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if isinstance(schema.get("pattern"), str):
        made["pattern"] = schema["pattern"].replace("^(?i)", "(?i)^")  # Go takes a flag anywhere, Python in front
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_manifest(manifests: list[dict[str, Any]], version: str) -> None:
    for manifest in manifests:
        validator = crd_validator(manifest["apiVersion"], manifest["kind"])
        if validator is None:
            kubernetes_validate.validate(manifest, version, strict=True)
        else:
            validator.validate(manifest)
        for spec in pod_specs(manifest):  # a CRD's pods are checked as Kubernetes will once it makes them
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
            kubernetes_validate.validate(pod, version, strict=True)


def test_pods_are_restricted_limited_probed_and_pinned(manifests: list[dict[str, Any]]) -> None:
    faults = [fault for manifest in manifests for spec in pod_specs(manifest) for fault in pod_faults(manifest, spec)]
    assert faults == []


def pod_faults(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    where = f"{manifest['kind']}/{manifest['metadata']['name']}"
    pod = spec["securityContext"]
    if not (pod["runAsNonRoot"] and pod["runAsUser"] > 0 and pod["seccompProfile"]["type"] == "RuntimeDefault"):
        yield f"{where}: not restricted"
    if spec["automountServiceAccountToken"] or spec["enableServiceLinks"] or spec.get("hostNetwork"):
        yield f"{where}: knows of the cluster"
    for container in spec["containers"]:
        mine = container["securityContext"]
        if (
            mine["allowPrivilegeEscalation"]
            or not mine["readOnlyRootFilesystem"]
            or mine["capabilities"] != {"drop": ["ALL"]}
        ):
            yield f"{where}: {container['name']} is not locked down"
        tag = container["image"].rpartition(":")[2]
        if "/" in tag or tag == "latest":
            yield f"{where}: {container['image']} is not pinned"
        if "memory" not in container["resources"]["limits"] or "cpu" not in container["resources"]["requests"]:
            yield f"{where}: {container['name']} has no limits"
        if manifest["kind"] not in ("Job", "Pod") and "livenessProbe" not in container:
            yield f"{where}: {container['name']} is not probed"
        secrets = [item["name"] for item in container.get("env", []) if "secretKeyRef" in item.get("valueFrom", {})]
        if secrets and "trial" not in where:
            yield f"{where}: secrets in the environment: {secrets}"


def settings() -> set[str]:
    page = (ROOT / "docs/settings.md").read_text()
    return set(re.findall(r"^\| `(FUSION_\w+)` \|", page, re.MULTILINE))


def test_every_variable_is_a_setting(manifests: list[dict[str, Any]]) -> None:
    used = {
        item["name"].removesuffix("_FILE")
        for manifest in manifests for spec in pod_specs(manifest)
        for container in spec["containers"] for item in container.get("env", []) if item["name"].startswith("FUSION_")
    }  # fmt: skip
    assert used - settings() - {"FUSION_SPEND_LIMIT"} == set()


def test_names_and_selectors_are_unique_and_meet_their_pods() -> None:
    found = render(CASES["everything on trial"])
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(names) == len(set(names))
    for one in found:
        if one["kind"] in ("Deployment", "StatefulSet"):
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_a_scaled_pool_is_drained_gently_and_its_running_jobs_survive_a_change() -> None:
    (job,) = of_kind(CASES["everything"], "ScaledJob").values()
    assert job["spec"]["rollout"] == {"strategy": "gradual"}
    scaled = of_kind(CASES["everything"], "ScaledObject")["demo-fusion-worker-h100x1"]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (1, 4)
    assert scaled["triggers"][0]["metadata"]["url"].endswith("orchestrator.ml:8001/demand/h100x1")
    deployment = of_kind(CASES["everything"], "Deployment")["demo-fusion-worker-h100x1"]["spec"]
    assert "replicas" not in deployment, "KEDA decides"
    pod = deployment["template"]
    assert pod["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    env = {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}
    assert int(env["FUSION_DRAIN_GRACE_S"]) < pod["spec"]["terminationGracePeriodSeconds"]
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_marks_that_follow_the_lease_are_set_by_the_orchestrator_alone() -> None:
    always, leased = CASES["everything"], CASES["marks while a lease is held"]
    assert of_kind(always, "Role") == {}
    (role,) = of_kind(leased, "Role").values()
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "patch"]}]
    (binding,) = of_kind(leased, "RoleBinding").values()
    assert [subject["name"] for subject in binding["subjects"]] == ["demo-fusion-orchestrator"]
    pods = [(manifest["metadata"]["name"], spec) for manifest in render(leased) for spec in pod_specs(manifest)]
    assert [name for name, spec in pods if "serviceAccountToken" in json.dumps(spec)] == ["demo-fusion-orchestrator"]

    warm = of_kind(leased, "Deployment")["demo-fusion-worker-h100x1"]["spec"]["template"]["metadata"]
    assert "annotations" not in warm
    (spec,) = pod_specs(of_kind(leased, "Deployment")["demo-fusion-orchestrator"])
    env = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
    asked = dict(part.split("=") for part in env["FUSION_MARK_PODS"].split(","))
    assert asked.items() <= warm["labels"].items()
    (job,) = of_kind(leased, "ScaledJob").values()
    marked = job["spec"]["jobTargetRef"]["template"]["metadata"]
    assert marked["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    assert not asked.items() <= marked["labels"].items()
    rules = of_kind(leased, "NetworkPolicy")["demo-fusion-orchestrator"]["spec"]["egress"]
    assert [{"ipBlock": {"cidr": "172.20.0.1/32"}}] in [rule["to"] for rule in rules]


def test_each_group_of_nodes_restarts_by_itself_and_hears_nobody_else() -> None:
    groups = of_kind(CASES["everything"], "JobSet")
    first, name = sorted(groups)
    assert re.fullmatch(r"demo-fusion-worker-h100x16-0-[0-9a-f]{6}", first)
    assert re.fullmatch(r"demo-fusion-worker-h100x16-1-[0-9a-f]{6}", name)
    leader, follower = groups[name]["spec"]["replicatedJobs"]
    assert (leader["name"], follower["name"]) == ("node-0", "node-1")
    job = leader["template"]["spec"]
    assert (job["completions"], job["backoffLimit"], job["template"]["spec"]["restartPolicy"]) == (1, 0, "Never")
    env = {item["name"]: item.get("value") for item in job["template"]["spec"]["containers"][0]["env"]}
    assert env["FUSION_LEADER_HOST"] == f"{name}-node-0-0-0.{name}"
    assert env["FUSION_GROUP_SECRET_FILE"] == "/etc/fusion/group/secret"
    assert "FUSION_EXIT_AFTER_JOBS" not in env, "a group serves job after job: its followers would wait for a leader"
    assert "SystemExit" in job["template"]["spec"]["containers"][0]["command"][-1], "ends badly: its index is not done"
    policy = of_kind(CASES["everything"], "NetworkPolicy")[name]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= job["template"]["metadata"]["labels"].items()
    assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}]


def test_a_follower_is_given_no_database_and_no_redis_and_has_no_way_to_them() -> None:
    name, group = min(of_kind(CASES["everything"], "JobSet").items())
    leader, follower = (part["template"]["spec"]["template"] for part in group["spec"]["replicatedJobs"])
    env, led = (
        {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]} for pod in (follower, leader)
    )
    assert (env["FUSION_NODE_RANK"], env["FUSION_LEADER_HOST"]) == ("1", f"{name}-node-0-0-0.{name}")
    assert env["FUSION_SHARDING"] == led["FUSION_SHARDING"] == "fsdp2"
    assert set(led) - set(env) == {"FUSION_DATABASE_URL_FILE", "FUSION_REDIS_URL_FILE", "PGSSLROOTCERT"}
    secrets = {volume["secret"]["secretName"] for volume in follower["spec"]["volumes"] if "secret" in volume}
    assert secrets == {"fusion-s3", "fusion-groups"}
    mounts = {mount["name"] for mount in follower["spec"]["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in follower["spec"]["volumes"]}

    labels = follower["metadata"]["labels"]
    assert store_ports(labels) == {443}
    assert store_ports(leader["metadata"]["labels"]) == {443, 5432, 6379}
    peers = [peer for peer, _ in reached(labels)]
    assert {"podSelector": {"matchLabels": {"fusion/group": labels["fusion/group"]}}} in peers
    trial = [peer["podSelector"]["matchLabels"] for peer in peers if "trial-store" in json.dumps(peer)]
    assert [each["fusion/trial-store"] for each in trial] == ["s3"]


def store_ports(labels: dict[str, str]) -> set[int | None]:
    return {port for peer, port in reached(labels) if peer.get("ipBlock") == {"cidr": "10.1.0.0/16"}}


def reached(labels: dict[str, str]) -> list[tuple[dict[str, Any], int | None]]:
    """Every peer that a pod with these labels may reach, with a port."""
    return [way for policy in policies_of(labels) for rule in policy["egress"] for way in ways(rule)]


def policies_of(labels: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Of the network policies that say where pods may go, those that select a pod with these labels."""
    for policy in of_kind(CASES["everything"], "NetworkPolicy").values():
        selector = policy["spec"]["podSelector"]
        met = selector.get("matchLabels", {}).items() <= labels.items()
        for asked in selector.get("matchExpressions", []):
            found = labels.get(asked["key"]) in asked["values"]
            met &= found if asked["operator"] == "In" else not found
        if met and "egress" in policy["spec"]:
            yield policy["spec"]


def ways(rule: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int | None]]:
    for peer in rule.get("to", []):
        for port in rule.get("ports", [{"port": None}]):
            yield peer, port["port"]


@pytest.mark.parametrize(
    ("endpoint", "given", "ports"),
    [
        ("https://s3.example.com", [], {443}),
        ("http://s3.example.com/path", [], {80}),
        ("https://[2001:db8::1]:9000", [], {9000}),
        ("https://s3.example.com:8443", [9000], {9000}),
    ],
)
def test_a_follower_reaches_the_port_of_s3(endpoint: str, given: list[int], ports: set[int]) -> None:
    values = STORES | {
        "s3": STORES["s3"] | {"endpoint": endpoint},
        "networkPolicies": STORES["networkPolicies"] | {"s3Ports": given},
    }
    policy = of_kind(values, "NetworkPolicy")["demo-fusion-followers"]["spec"]
    assert {port for rule in policy["egress"] for peer, port in ways(rule) if "ipBlock" in peer} == ports


def test_an_upgrade_makes_new_groups_for_jobset_refuses_changes() -> None:
    def names(**more: Any) -> set[str]:
        return set(of_kind(CASES["everything"] | more, "JobSet"))

    assert names() == names()
    assert names().isdisjoint(names(image={"registry": "registry.example.com/ml", "tag": "2.0.0"}))
    assert names().isdisjoint(names(workerPools=POOLS | {"h100x16": POOLS["h100x16"] | {"nodes": 3}}))


def test_scratch_on_the_node_is_asked_for_and_no_reason_to_be_evicted() -> None:
    pod = of_kind(CASES["everything"], "Deployment")["demo-fusion-worker-plain"]["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["requests"]["ephemeral-storage"] == "9Gi"
    assert set(resources["limits"]) == {"memory"}


def test_no_service_and_no_budget_takes_the_test_for_a_service_and_it_may_ask() -> None:
    labels = of_kind(CASES["everything"], "Pod")["demo-fusion-test-ready"]["metadata"]["labels"]
    selectors = [one["spec"]["selector"] for one in of_kind(CASES["everything"], "Service").values()]
    budgets = of_kind(CASES["everything"], "PodDisruptionBudget").values()
    selectors += [one["spec"]["selector"]["matchLabels"] for one in budgets]
    assert [selector for selector in selectors if selector.items() <= labels.items()] == []
    policies = of_kind(CASES["everything"], "NetworkPolicy")
    assert policies["demo-fusion-test"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    (asked,) = policies["demo-fusion-tested"]["spec"]["ingress"]
    assert asked["from"] == [{"podSelector": policies["demo-fusion-test"]["spec"]["podSelector"]}]


def test_what_trains_and_what_reads_are_both_scraped() -> None:
    services = of_kind(CASES["everything"], "Service").values()
    selected = {one["spec"]["selector"]["app.kubernetes.io/component"] for one in services}
    assert {"api", "orchestrator", "worker", "ingest"} <= selected
    monitors = of_kind(CASES["everything"], "ServiceMonitor").values()
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        assert len([one for one in services if wanted <= one["metadata"]["labels"].items()]) == 1
    assert len(monitors) == 4


def test_the_trial_store_has_the_bucket_before_it_serves() -> None:
    store = of_kind(CASES["trial stores"], "StatefulSet")["demo-fusion-trial-s3"]["spec"]["template"]["spec"]
    assert store["initContainers"][0]["command"][-1] == "/data/fusion"


def test_the_schema_migrates_before_the_new_release_and_after_a_trial_store_is_there() -> None:
    for case, hook in (
        ("external stores", "pre-install"),
        ("trial stores", "post-install"),
        ("one on trial", "post-install"),
    ):
        values = STORES | {"redis": {"trial": True}} if case == "one on trial" else CASES[case]
        job = of_kind(values, "Job")["demo-fusion-migrate"]["metadata"]["annotations"]
        assert job["helm.sh/hook"] == f"{hook},pre-upgrade", case
        account = of_kind(values, "ServiceAccount")["demo-fusion-migrate"]["metadata"]["annotations"]
        assert int(account.pop("helm.sh/hook-weight")) < int(job.pop("helm.sh/hook-weight"))
        assert account == job, "what succeeds together goes together, and nothing of it outlives the release"
        assert "hook-succeeded" in job["helm.sh/hook-delete-policy"].split(",")


def test_each_service_has_its_own_login_and_key_where_they_are_given() -> None:
    own = {
        "postgres": {"existingSecret": "pg", "keys": {"apiUrl": "a", "orchestratorUrl": "o", "workerUrl": "w"}},
        "s3": STORES["s3"] | {"secretOf": {"worker": "s3-worker"}},
        "workerPools": {"h100x1": POOLS["h100x1"]},
    }
    found = {}
    for name, manifest in (of_kind(STORES | own, "Deployment") | of_kind(STORES | own, "Job")).items():
        (spec,) = pod_specs(manifest)
        volumes = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
        found[name] = (volumes["postgres"]["items"][0]["key"], volumes["s3"]["secretName"])
    assert found == {
        "demo-fusion-api": ("a", "fusion-s3"),
        "demo-fusion-orchestrator": ("o", "fusion-s3"),
        "demo-fusion-ingest": ("w", "s3-worker"),
        "demo-fusion-worker-h100x1": ("w", "s3-worker"),
        "demo-fusion-migrate": ("url", "fusion-s3"),
    }


def test_a_private_ca_is_given_to_every_client() -> None:
    """asyncpg reads PGSSLROOTCERT, botocore AWS_CA_BUNDLE, everything else Python's SSL_CERT_FILE."""
    for manifest in render(CASES["everything"]):
        for spec in pod_specs(manifest):
            env = {item["name"]: item.get("value") for item in spec["containers"][0].get("env", [])}
            if "FUSION_DATABASE_URL_FILE" in env:
                paths = {env["PGSSLROOTCERT"], env["AWS_CA_BUNDLE"], env["SSL_CERT_FILE"]}
                mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
                assert paths == {"/etc/fusion/ca/ca.crt"}
                assert "/etc/fusion/ca" in mounts


def test_workers_reach_the_stores_and_nothing_else() -> None:
    policies = of_kind(CASES["everything"], "NetworkPolicy")
    assert policies["demo-fusion-default"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    allowed = [
        name for name, policy in policies.items()
        if policy["spec"].get("egress") and "worker" in json.dumps(policy["spec"]["podSelector"])
        and "fusion/group" not in policy["spec"]["podSelector"].get("matchLabels", {})  # to each other alone
    ]  # fmt: skip
    assert allowed == ["demo-fusion-stores"]
    blocks = [peer["ipBlock"]["cidr"] for rule in policies["demo-fusion-stores"]["spec"]["egress"]
              for peer in rule.get("to", []) if "ipBlock" in peer]  # fmt: skip
    assert blocks == ["10.1.0.0/16"]


def test_names_are_asked_of_the_clusters_resolver_alone_unless_told_otherwise() -> None:
    def asked(**more: Any) -> Any:
        values = STORES | {"networkPolicies": STORES["networkPolicies"] | more}
        (rule,) = of_kind(values, "NetworkPolicy")["demo-fusion-default"]["spec"]["egress"]
        assert {port["port"] for port in rule["ports"]} == {53, 5353}
        return rule.get("to")

    pods, node = asked()
    assert pods["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert node == {"ipBlock": {"cidr": "169.254.0.0/16"}}
    own = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}}]
    assert asked(dnsTo=own) == own
    assert asked(dnsTo=[]) is None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown name": (STORES | {"workerPool": {}}, "workerPool"),
    "no registry": ({"postgres": {"trial": True}}, "registry"),
    "the latest tag": (STORES | {"image": {"registry": "r", "tag": "latest"}}, "tag"),
    "an unknown mode": (STORES | {"workerPools": {"a": {"mode": "daemonset"}}}, "mode"),
    "a pool's bad name": (STORES | {"workerPools": {"A_1": {}}}, "A_1"),
    "the readers' pool": (STORES | {"workerPools": {"cpu": {}}}, "cpu"),
    "nodes without a group": (STORES | {"workerPools": {"a": {"nodes": 2}}}, "mode"),
    "a group of one": (STORES | {"workerPools": {"a": {"mode": "jobset"}}}, "nodes"),
    "a group without a secret": (STORES | {"workerPools": {"a": {"mode": "jobset", "nodes": 2}}}, "existingSecret"),
    "a grace too short": (STORES | {"workerPools": {"a": {"gracePeriodSeconds": 5}}}, "gracePeriodSeconds"),
    "a variable that is no setting": (STORES | {"api": {"env": {"PATH": "/"}}}, "PATH"),
    "a bad quantity": (STORES | {"trialStorage": {"size": "much"}}, "size"),
    "a group's pods with too long names": (
        STORES | {"groups": {"existingSecret": "g"}, "workerPools": {"p" * 30: {"mode": "jobset", "nodes": 2}}},
        "shorten",
    ),
    "stores that nobody may reach": (STORES | {"networkPolicies": {"storeCidrs": []}}, "storeCidrs"),
    "marks without a way to Kubernetes": (STORES | {"disruptionMarks": {"enabled": True}}, "apiCidrs"),
    "a bad network": (STORES | {"networkPolicies": {"storeCidrs": ["here"]}}, "storeCidrs"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_are_refused_by_name(wrong: str) -> None:
    values, named = WRONG[wrong]
    with pytest.raises(HelmError, match=named):
        render(values)


def test_everything_that_is_missing_is_said_at_once() -> None:
    values = {
        "image": {"registry": "r"},
        "api": {"ingress": {"enabled": True}, "gateway": {"enabled": True}},
        "workerPools": {"a": {"mode": "scaledjob", "min": 5}, "b": {"gpu": {"count": 1}, "sharding": "fsdp2"}},
    }
    with pytest.raises(HelmError) as refused:
        render(values)
    places = ["postgres.existingSecret", "redis.existingSecret", "s3.existingSecret", "s3.endpoint", "api.ingress.host"]
    places += ["api.gateway.host", "api.gateway.parent.name", "workerPools.a.mode", "workerPools.a.min"]
    places += ["workerPools.b.gpu.class", "workerPools.b.sharding"]
    assert [place for place in places if f"{place}: " not in str(refused.value)] == []


def test_every_documented_value_is_in_the_schema_and_used_by_a_template() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    assert set(values) == set(schema["properties"]) - {"global"}
    unused = [name for section in values.values() if isinstance(section, dict) for name in section
              if not re.search(rf"\b{name}\b", templates)]  # fmt: skip
    assert unused == []


def test_the_linter_finds_nothing() -> None:
    report = lint(CHART, CASES["everything"], strict=True)
    assert [message for message in report["messages"] if message["severity"] not in ("INFO", "Info", 1)] == []
