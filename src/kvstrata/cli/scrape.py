"""Asking a running engine: its models and its metrics, over HTTP."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping

from kvstrata.doctor.facts import ReplicaFacts
from kvstrata.errors import ConfigError
from kvstrata.fleet.exposition import samples

SECONDS = 10.0
MOST_BYTES = 64 << 20


def ask(url: str) -> ReplicaFacts:
    """What the engine at `url` says of itself; an engine that cannot be asked is an answer too.

    Raises:
        ConfigError: `url` is no address of a server.
    """
    base = _base(url)
    try:
        metrics = _get(f"{base}/metrics").decode(errors="replace")
        listed = json.loads(_get(f"{base}/v1/models"))["data"]
        models = tuple(str(model["id"]) for model in listed)
        root = next((str(model["root"]) for model in listed if model.get("root")), "")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return ReplicaFacts(url, error=str(error) or type(error).__name__)
    return read(url, metrics, models, root or next(iter(models), ""))


def read(url: str, metrics: str, models: tuple[str, ...], root: str) -> ReplicaFacts:
    """Facts from the text of `/metrics`."""
    settings: dict[str, str] = {}
    who: Mapping[str, str] = {}
    counts: dict[str, dict[str, float]] = {}
    codes: list[str] = []
    for name, labels, value in samples(metrics):
        if name == "vllm:cache_config_info":
            settings = settings or dict(labels)
        elif name == "vllm:kvstrata_info" and value:
            who = labels
        elif name == "vllm:kvstrata_finding" and value:
            codes.append(labels.get("code", ""))
        elif name.startswith("vllm:kvstrata_"):
            label = labels.get("reason") or labels.get("tier") or ""
            kind = counts.setdefault(name.removeprefix("vllm:kvstrata_"), {})
            kind[label] = kind.get(label, 0) + value
    return ReplicaFacts(
        url,
        models=models,
        root=root,
        settings=settings,
        namespace=who.get("namespace", ""),
        hash_seed=who.get("hash_seed", ""),
        version=who.get("version", ""),
        codes=tuple(dict.fromkeys(codes)),
        bad_records=counts.get("bad_records_total", {}),
        dropped_writes=counts.get("writes_dropped_total", {}),
        deadlines=sum(counts.get("read_deadlines_total", {}).values()),
        stuck=sum(counts.get("stuck_threads", {}).values()),
        tokens=counts.get("tokens_total", {}),
    )


def fetch_metrics(url: str) -> str:
    """Text of the metrics of the engine at `url`.

    Raises:
        ConfigError: `url` is no address of a server.
        OSError: the engine cannot be asked.
    """
    return _get(f"{_base(url)}/metrics").decode(errors="replace")


def require_address(url: str) -> None:
    """Raises ConfigError unless `url` is an address of a server."""
    _base(url)


def _base(url: str) -> str:
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"not an address such as http://127.0.0.1:8000: {url!r}")
    return base


def _get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "*/*"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            body: bytes = answer.read(MOST_BYTES)
            if answer.length:
                raise OSError(f"the answer broke off, or has more than {MOST_BYTES} bytes")
            return body
    except http.client.HTTPException as error:  # no HTTP, or an answer that breaks off
        raise OSError(f"no answer in HTTP: {error!r}") from None
