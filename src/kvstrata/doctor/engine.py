"""One engine: what it will cache, and which of its settings make hits zero, wrong or few."""

from collections.abc import Iterator
from dataclasses import dataclass

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.doctor.facts import EngineFacts
from kvstrata.doctor.findings import Finding, found
from kvstrata.sizes import format_size

CONNECTOR = "KVStrataConnector"
LONG_PART = 4
"""A chunk that is more than the longest request over this is called long."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What is cached of one group.

    Attributes:
        group: vLLM's index.
        kind: what a boundary needs from it.
        layers: number of layers.
        tokens_per_block: tokens.
        tokens_per_chunk: tokens.
        chunk_bytes: bytes of one chunk over all ranks.
        window_tokens: 0 where there is no window.
        boundary_chunks: chunks that a boundary on a chunk's end needs; None where it needs all to its left.
        longest_bytes: bytes that a request of the greatest length loads from this group.
    """

    group: int
    kind: str
    layers: int
    tokens_per_block: int
    tokens_per_chunk: int
    chunk_bytes: int
    window_tokens: int
    boundary_chunks: int | None
    longest_bytes: int


def group_rows(facts: EngineFacts) -> list[GroupRow]:
    """What will be cached, group by group."""
    return [
        GroupRow(
            group=g.group,
            kind=g.kind.value,
            layers=layers,
            tokens_per_block=g.tokens_per_block,
            tokens_per_chunk=g.tokens_per_chunk,
            chunk_bytes=g.payload_bytes,
            window_tokens=g.window_tokens,
            boundary_chunks=_at_boundary(g) if g.windowed else None,
            longest_bytes=_chunks(g, facts.max_model_len) * g.payload_bytes,
        )
        for g, layers in zip(facts.groups, facts.layers, strict=True)
    ]


def smallest_boundary(facts: EngineFacts) -> int:
    """Tokens of the shortest prompt of which anything is stored: the longest chunk of a group; 0 for none."""
    return max((g.tokens_per_chunk for g in facts.groups), default=0)


def longest_request_bytes(facts: EngineFacts) -> int:
    """Bytes of slots that one request of the greatest length needs in the arena."""
    return sum(_chunks(g, facts.max_model_len) * g.slot_bytes for g in facts.groups)


def _at_boundary(geometry: GroupGeometry) -> int:
    return geometry.window_chunks(geometry.tokens_per_chunk)


def _chunks(geometry: GroupGeometry, tokens: int) -> int:
    whole = tokens // geometry.tokens_per_chunk
    return min(whole, _at_boundary(geometry)) if geometry.windowed else whole


def check_engine(facts: EngineFacts) -> list[Finding]:
    """Everything that this engine's settings give reason to say, in no particular order."""
    if facts.connector != CONNECTOR:
        name = facts.connector or "no connector"
        return [found("no-connector", "kv_connector", f"the engine runs with {name}")]
    return [
        *_reuse(facts),
        *_groups(facts),
        *_retention(facts),
        *_hashes(facts),
        *_weights(facts),
        *_lifetime(facts),
        *_arena(facts),
    ]


def _reuse(facts: EngineFacts) -> Iterator[Finding]:
    if not facts.prefix_caching:
        yield found("prefix-caching-off", "enable_prefix_caching", "prefix caching is off")
    if facts.role != "kv_both":
        yield found("role", "kv_role", f"kv_role is {facts.role!r}")
    if not facts.exact:
        yield found("estimated", facts.model, "the groups are an estimate")
    if facts.load_failure_policy != "fail":
        policy = facts.load_failure_policy
        yield found("load-failure-policy", "kv_load_failure_policy", f'it is "{policy}"')


def _groups(facts: EngineFacts) -> Iterator[Finding]:
    states = [g for g in facts.groups if g.kind is GroupKind.STATE]
    too_long = [
        g for g in states if facts.prefix_caching and g.tokens_per_block > facts.scheduler_block
    ]
    for group in too_long[:1]:
        yield found(
            "state-block-size",
            _groups_named(too_long),
            f"a state covers {group.tokens_per_block} tokens, the scheduler's block "
            f"{facts.scheduler_block}",
            size=group.tokens_per_block,
        )
    used = max((g.blocks_per_chunk for g in facts.groups), default=1)
    if used < facts.asked_blocks:
        yield found(
            "chunk-not-used",
            "blocks_per_chunk",
            f"{facts.asked_blocks} blocks were asked for, {_blocks(used)} used",
        )
    longest = smallest_boundary(facts)
    if used > 1 and longest * LONG_PART > facts.max_model_len:
        yield found(
            "chunk-long",
            "blocks_per_chunk",
            f"a chunk has {longest} of the {facts.max_model_len} tokens of the longest request",
        )
    if facts.merged_layers:
        yield found(
            "hybrid-manager-off",
            "disable_hybrid_kv_cache_manager",
            f"{facts.merged_layers} layers with a window are cached as full attention",
        )


def _retention(facts: EngineFacts) -> Iterator[Finding]:
    windowed = [g for g in facts.groups if g.windowed]
    if not windowed or not facts.prefix_caching:
        return
    chunk = max(g.tokens_per_chunk for g in windowed)
    if facts.retention:
        for group in windowed:
            if facts.retention % group.tokens_per_chunk:
                yield found(
                    "retention-interval",
                    f"group {group.group}",
                    f"{facts.retention} is no multiple of {group.tokens_per_chunk} tokens",
                    chunk=group.tokens_per_chunk,
                )
    if facts.retention == 0:
        yield found(
            "sparse-retention",
            _groups_named(windowed),
            "kept at the end of a prompt and at known junctions only",
            chunk=chunk,
        )


def _hashes(facts: EngineFacts) -> Iterator[Finding]:
    if facts.path is None:
        return
    if facts.hash_seed is not None:
        yield found("seed-set", "PYTHONHASHSEED", f"PYTHONHASHSEED is {facts.hash_seed}")
    elif facts.hash_algorithm.startswith("xxhash"):
        yield found(
            "seed-random",
            "PYTHONHASHSEED",
            f"the block hash is {facts.hash_algorithm}, and PYTHONHASHSEED is not set",
        )


def _weights(facts: EngineFacts) -> Iterator[Finding]:
    if facts.lora:
        yield found("lora", "enable_lora", "LoRA adapters may be loaded")
    if facts.sleep_mode:
        yield found("sleep-mode", "enable_sleep_mode", "sleep mode is enabled")


def _lifetime(facts: EngineFacts) -> Iterator[Finding]:
    if facts.path is None:
        yield found("memory-only", "path", "no directory is given")
    elif facts.read_only:
        yield found("read-only", "read_only", f"{facts.path} is only read")
    elif not facts.shutdown_timeout:
        yield found("shutdown-timeout", "shutdown_timeout", "--shutdown-timeout is not given")
    if facts.prompts_only:
        yield found("prompts-only", "offload_prompt_only", "answers are not stored")


def _arena(facts: EngineFacts) -> Iterator[Finding]:
    if facts.arena_bytes is None or not facts.groups:
        return
    least = sum((_at_boundary(g) if g.windowed else 1) * g.slot_bytes for g in facts.groups)
    longest = longest_request_bytes(facts)
    if facts.arena_bytes < least:
        yield found(
            "arena-too-small",
            "memory",
            f"{format_size(facts.arena_bytes)}; the smallest boundary needs {format_size(least)}",
            size=format_size(longest),
        )
    elif facts.arena_bytes < longest:
        yield found(
            "arena-small",
            "memory",
            f"{format_size(facts.arena_bytes)}; a request of {facts.max_model_len} tokens needs "
            f"{format_size(longest)}",
            size=format_size(longest),
        )


def _groups_named(groups: list[GroupGeometry]) -> str:
    numbers = ", ".join(str(g.group) for g in groups)
    return f"group{'s' if len(groups) > 1 else ''} {numbers}"


def _blocks(count: int) -> str:
    return f"{count} block{'s are' if count > 1 else ' is'}"
