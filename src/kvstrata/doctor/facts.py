"""What the doctor looks at. Whoever gathers facts does the I/O; nothing here does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvstrata.chunks.geometry import GroupGeometry


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """One engine's settings, known from its configuration alone.

    Attributes:
        model: its name.
        groups: geometry of every offloaded group.
        layers: number of layers of each group, in the order of `groups`.
        merged_layers: layers with a window that are kept as full attention.
        exact: whether the groups are vLLM's own, not an estimate.
        max_model_len: tokens of the longest request.
        scheduler_block: tokens of the block that the scheduler aligns steps to.
        prefix_caching: whether vLLM looks for prefixes.
        retention: vLLM's `prefix_cache_retention_interval`: 0, a period in tokens, or None for all.
        hash_algorithm: name of the block hash.
        hash_seed: PYTHONHASHSEED, or None.
        prompts_only: whether blocks of answers are not stored.
        lora: whether adapters may be loaded.
        sleep_mode: whether the engine may be put to sleep.
        shutdown_timeout: seconds.
        asked_blocks: blocks of a chunk that were asked for.
        connector: name of the KV connector, or None.
        role: `kv_role`.
        load_failure_policy: "fail" or "recompute".
        arena_bytes: of the host arena, or None where it is not known yet.
        path: of the filesystem tier, or None.
        read_only: whether the filesystem tier only reads.
    """

    model: str
    groups: tuple[GroupGeometry, ...]
    layers: tuple[int, ...]
    max_model_len: int
    scheduler_block: int
    merged_layers: int = 0
    exact: bool = True
    prefix_caching: bool = True
    retention: int | None = 0
    hash_algorithm: str = "sha256"
    hash_seed: str | None = None
    prompts_only: bool = False
    lora: bool = False
    sleep_mode: bool = False
    shutdown_timeout: int = 0
    asked_blocks: int = 1
    connector: str | None = "KVStrataConnector"
    role: str = "kv_both"
    load_failure_policy: str = "fail"
    arena_bytes: int | None = None
    path: str | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class PlaceFacts:
    """What was found by trying a directory.

    Attributes:
        path: of the directory.
        exists: whether it was there.
        error: why it cannot be used at all; empty if it can.
        write_error: why no file can be made there; empty if one can.
        renames: whether a file can be renamed over another one.
        rename_error: why not.
        room_error: why a file of the size that was asked for cannot be written; empty if it can.
        free_bytes: that this user may still use; None where nothing says so.
        in_memory: whether it is a memory filesystem.
    """

    path: str
    exists: bool = True
    error: str = ""
    write_error: str = ""
    renames: bool = True
    rename_error: str = ""
    room_error: str = ""
    free_bytes: int | None = None
    in_memory: bool = False


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """One namespace's directory and what its description covers (None: missing or damaged)."""

    directory: str
    model: str
    covers: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What a running engine's server says of itself.

    Attributes:
        url: of the server.
        error: why it could not be asked; empty if it could.
        models: names that it serves, the model's own first.
        root: path or name of the model itself.
        settings: vLLM's cache settings, as text, by name.
        namespace: directory name of its namespace; empty when it has none or has not said.
        hash_seed: "random", "default" or "set"; empty when it has not said.
        version: of kvstrata; empty when it has not said.
        codes: of the findings at its start.
        bad_records, dropped_writes: counts by reason.
        deadlines: reads that took too long.
        stuck: I/O threads that hang.
        tokens: prompt tokens by the tier they came from.
    """

    url: str
    error: str = ""
    models: tuple[str, ...] = ()
    root: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    hash_seed: str = ""
    version: str = ""
    codes: tuple[str, ...] = ()
    bad_records: Mapping[str, float] = field(default_factory=dict)
    dropped_writes: Mapping[str, float] = field(default_factory=dict)
    deadlines: float = 0
    stuck: float = 0
    tokens: Mapping[str, float] = field(default_factory=dict)
