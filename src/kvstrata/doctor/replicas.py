"""Several engines: do they share, and if not, which field keeps them apart."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kvstrata.doctor.facts import NamespaceFacts, ReplicaFacts
from kvstrata.doctor.findings import CODES, Finding, found

SHARED_SETTINGS = (
    "block_size",
    "mamba_block_size",
    "prefix_caching_hash_algo",
    "cache_dtype",
    "mamba_cache_dtype",
    "mamba_ssm_cache_dtype",
    "mamba_cache_mode",
    "prefix_match_unit",
)
"""vLLM's cache settings in which engines that share files agree."""
RANDOM_SEED = "random"
THIS_ENGINE = "this engine"
FOUND_AT_START = "the engine found it at its start; its log names the values"
MOST_FIELDS = 12
"""Fields that are named one by one; the rest is counted."""

FIELD_REMEDIES: Mapping[str, str] = {
    "hash_seed": "set PYTHONHASHSEED to one value for all replicas, or for none",
    "hash_algorithm": "give all replicas the same --prefix-caching-hash-algo",
    "label": "give all replicas the same option label",
    "weights": "let all replicas load the same weight files",
    "revision": "give all replicas the same --revision",
    "config": "use one config.json and the same --hf-overrides",
    "dtype": "give all replicas the same --dtype",
    "quantization": "give all replicas the same --quantization",
    "long_rope": "give all replicas the same --max-model-len",
    "kv_cache": "give all replicas the same KV cache options (--kv-cache-dtype, attention back end, ...)",
    "groups": "give all replicas the same --block-size and blocks_per_chunk, and the hybrid KV cache "
    "manager on or off alike",
    "parallel": "give all replicas the same parallel sizes",
    "layout": "use one kind of device and attention back end",
    "speculative": "give all replicas the same --speculative-config",
    "engine": "use one release of vLLM and one kind of device",
    "seed": "give all replicas the same --seed",
    "record_version": "use one release of kvstrata",
    "checksum": "use one release of kvstrata",
    "disable_sliding_window": "give it to all replicas or to none",
}
"""What to do about a field of the namespace, by its first part."""

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 60
_ABSENT = "absent"


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists by dotted name, such as "groups.0.kind"."""
    parts: Iterable[tuple[str, Any]]
    if isinstance(value, Mapping) and value:
        parts = ((str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple) and value:
        parts = ((str(index), item) for index, item in enumerate(value))
    else:
        return {name: value} if name else {}
    found_leaves: dict[str, Any] = {}
    for key, item in parts:
        found_leaves.update(flatten(item, f"{name}.{key}" if name else key))
    return found_leaves


def differing_fields(described: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Fields that differ.

    Args:
        described: what each namespace covers, by the namespace's name.

    Returns:
        For each differing field, each namespace's value, shortened, by name.
    """
    flat = {name: flatten(covers) for name, covers in described.items()}
    fields = sorted({field for leaves in flat.values() for field in leaves})
    missing = object()
    result: dict[str, dict[str, str]] = {}
    for field in fields:
        values = {name: leaves.get(field, missing) for name, leaves in flat.items()}
        first = next(iter(values.values()))
        if any(type(value) is not type(first) or value != first for value in values.values()):
            result[field] = {
                name: _ABSENT if value is missing else _shown.repr(value)
                for name, value in values.items()
            }
    return result


def check_namespaces(namespaces: Sequence[NamespaceFacts]) -> Iterator[Finding]:
    """Compare the namespaces of each model; name every field that keeps two of them apart."""
    by_model: dict[str, list[NamespaceFacts]] = {}
    for namespace in namespaces:
        by_model.setdefault(namespace.model, []).append(namespace)
    for model in sorted(by_model):
        yield from _check_model(model, by_model[model])


def _check_model(model: str, namespaces: list[NamespaceFacts]) -> Iterator[Finding]:
    described: dict[str, Mapping[str, Any]] = {}
    random_seed, reset = [], []
    for namespace in namespaces:
        covers = namespace.covers
        if not isinstance(covers, Mapping):
            yield found(
                "namespace-undescribed", namespace.directory, "namespace.json is missing or damaged"
            )
        elif "reset" in covers:
            reset.append(namespace.directory)
        else:
            alike = _seed_alike(covers)
            if alike is not covers:
                random_seed.append(namespace.directory)
            described[namespace.directory] = alike
    if random_seed:
        yield found("namespace-random", model, f"{_count(random_seed)}: {_list(random_seed)}")
    if reset:
        yield found("namespace-reset", model, f"{_count(reset)}: {_list(reset)}")
    if len(described) > 1:
        yield from _name_fields(model, differing_fields(described))


def _seed_alike(covers: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same facts, with one word for all random seeds: that they differ is said once, elsewhere."""
    if str(covers.get("hash_seed", "")).startswith(RANDOM_SEED):
        return {**covers, "hash_seed": RANDOM_SEED}
    return covers


def _name_fields(model: str, fields: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    for field, values in list(fields.items())[:MOST_FIELDS]:
        holders: dict[str, list[str]] = {}
        for name, value in values.items():
            holders.setdefault(value, []).append(fingerprint_part(name))
        text = "; ".join(f"{value} in {_list(names)}" for value, names in holders.items())
        remedy = FIELD_REMEDIES.get(field.partition(".")[0], CODES["namespace-differs"].remedy)
        kind = CODES["namespace-differs"]
        yield Finding("namespace-differs", kind.severity, f"{model}: {field}", text, remedy)
    if len(fields) > MOST_FIELDS:
        rest = list(fields)[MOST_FIELDS:]
        yield found(
            "namespace-differs", f"{model}: {len(rest)} more fields", ", ".join(sorted(rest)[:20])
        )


def check_against(
    covers: Mapping[str, Any], model: str, namespaces: Sequence[NamespaceFacts]
) -> Iterator[Finding]:
    """Whether an engine that is not started yet would share a namespace that is there.

    Args:
        covers: what its namespace would cover, as far as it is known.
        model: its name.
        namespaces: of its root.
    """
    name = model.rstrip("/").rpartition("/")[2]
    nearest: dict[str, dict[str, str]] | None = None
    for namespace in namespaces:
        if namespace.model != name or not namespace.covers or "reset" in namespace.covers:
            continue
        known = {key: fact for key, fact in namespace.covers.items() if key in covers}
        fields = differing_fields(
            {THIS_ENGINE: _seed_alike(covers), namespace.directory: _seed_alike(known)}
        )
        if nearest is None or len(fields) < len(nearest):
            nearest = fields
    if nearest:
        yield from _name_fields(name, nearest)


def fingerprint_part(directory: str) -> str:
    """The first eight digits of the fingerprint in a namespace's name: enough to tell them apart."""
    head, dash, digits = directory.rpartition("-")
    return digits[:8] if dash and head else directory


def check_replicas(
    replicas: Sequence[ReplicaFacts], namespaces: Sequence[NamespaceFacts] = ()
) -> Iterator[Finding]:
    """Running engines, each by itself and against the others.

    Args:
        replicas: what each says of itself.
        namespaces: of the directory that they share, if it was given; then the fields are named.
    """
    for replica in replicas:
        yield from _check_replica(replica)
    by_model: dict[str, list[ReplicaFacts]] = {}
    for replica in replicas:
        if not replica.error:
            by_model.setdefault(replica.root.rstrip("/").rpartition("/")[2], []).append(replica)
    for model, members in by_model.items():
        if len(members) > 1:
            yield from _compare(model, members, namespaces)


def _check_replica(replica: ReplicaFacts) -> Iterator[Finding]:
    if replica.error:
        yield found("replica-unreachable", replica.url, replica.error)
        return
    for code in replica.codes:
        if code in CODES:  # a newer engine may know more than we do
            kind = CODES[code]
            text = kind.remedy.replace("{", "<").replace("}", ">")
            yield Finding(code, kind.severity, replica.url, FOUND_AT_START, text)
    said = set(replica.codes)
    if not replica.version:
        yield found("replica-silent", replica.url, "no kvstrata metric yet")
    if (
        replica.settings.get("enable_prefix_caching") == "False"
        and "prefix-caching-off" not in said
    ):
        yield found("prefix-caching-off", replica.url, "enable_prefix_caching is False")
    if replica.hash_seed == RANDOM_SEED and "seed-random" not in said:
        yield found("seed-random", replica.url, "the engine drew a random hash seed")
    for code, counts in (
        ("live-bad-records", replica.bad_records),
        ("live-dropped-writes", replica.dropped_writes),
    ):
        seen = {reason: count for reason, count in counts.items() if count}
        if seen:
            text = ", ".join(f"{reason}: {count:g}" for reason, count in sorted(seen.items()))
            yield found(code, replica.url, text)
    if replica.deadlines:
        yield found("live-deadlines", replica.url, f"{replica.deadlines:g} requests")
    if replica.stuck:
        yield found("live-stuck", replica.url, f"{replica.stuck:g} threads")


def _compare(
    model: str, replicas: list[ReplicaFacts], namespaces: Sequence[NamespaceFacts]
) -> Iterator[Finding]:
    for name in SHARED_SETTINGS:
        values = {replica.url: replica.settings.get(name, "") for replica in replicas}
        if len(set(values.values())) > 1:
            yield found("replica-setting", f"{model}: {name}", _pairs(values))
    versions = {replica.url: replica.version for replica in replicas if replica.version}
    if len(set(versions.values())) > 1:
        yield found("replica-version", model, _pairs(versions))
    places = {replica.url: replica.namespace for replica in replicas if replica.namespace}
    if len(set(places.values())) > 1:
        yield found("replica-namespace", model, _pairs(places))
        used = set(places.values())
        yield from check_namespaces([n for n in namespaces if n.directory in used])


def _pairs(values: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value or 'not said'}" for name, value in values.items())


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} namespace{'s' if len(names) > 1 else ''}"
