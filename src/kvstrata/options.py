"""The options of one engine, parsed once from vLLM's `kv_connector_extra_config`.

Everything that reads an option takes an `Options`; nothing else looks into the mapping. The table
that the documents and `kvstrata options` show is made from the fields below, so it cannot fall
behind them.
"""

import difflib
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

from kvstrata.chunks.tenants import TenantTerms, read_terms
from kvstrata.errors import ConfigError
from kvstrata.option_values import (
    MAX_LABEL,
    MAX_SECONDS,
    MAX_THREADS,
    MAX_WEIGHT,
    Capacity,
    one_of,
    read_capacity,
    read_directory,
    read_flag,
    read_label,
    read_positive_age,
    read_positive_size,
    read_seconds,
    read_threads,
    read_weight,
)
from kvstrata.sizes import AGE_ALLOWED, SIZE_ALLOWED, format_age, format_size, read_size

ENGINE_KEYS: Mapping[str, str] = {
    "spec_name": "name of the offloading spec; the connector sets it",
    "spec_module_path": "module of the offloading spec; the connector sets it",
    "blocks_per_chunk": "blocks of one group that are stored together, as one file",
    "block_size": "tokens of a chunk, instead of blocks_per_chunk",
    "offload_prompt_only": "store the blocks of prompts, not those of answers (false unless set)",
    "self_describing_kv_events": "put token ids and block sizes into KV events of stored chunks",
}
"""Keys of the same mapping that vLLM itself reads, with what they do there; we ignore them."""

_ELSEWHERE: Mapping[str, str] = {
    "cpu_bytes_to_use": "memory",
    "num_cpu_blocks": "memory",
    "secondary_tiers": "path",
    "shared_storage_path": "path",
    "root_dir": "path",
}
"""What other connectors call our options; spelling alone does not lead from one to the other."""

EVICTION = ("boundary", "lru", "arc")
"""Names of the memory tier's policies."""

SEALS = ("none", "authenticate", "encrypt")
"""How files are guarded against strangers."""

SHARED_WITH = ("user", "group")
"""Who else may use the files."""

ADMISSION = ("always", "measured", "second-sight")
"""Names of the policies for writes."""

DIRECT = ("auto", "never", "always")
"""When files are read past the page cache."""

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100


def _wrong(what: str, allowed: str, value: object, hint: ValueError) -> str:
    tail = f" ({hint})" if str(hint) else ""
    return f"{what} must be {allowed}; got {_shown.repr(value)}{tail}"


def _option(
    default: Any,
    parse: Callable[[object], Any],
    allowed: str,
    doc: str,
    *,
    unit: str = "",
    unset: str = "",
) -> Any:
    """A field of `Options`. `unset` describes what happens where the default is None."""
    return field(
        default=default,
        metadata={"parse": parse, "allowed": allowed, "doc": doc, "unit": unit, "unset": unset},
    )


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator can set. Make one with `parse`; the constructor checks nothing.

    Attributes:
        path: absolute directory of the filesystem tier; None for a cache in memory alone.
        memory: bytes of the host arena; None where the engine chooses at its start.
        io_threads: threads; 0 follows the machine.
        read_deadline: seconds.
        store_queue: bytes.
        segment: payload bytes of a file that several chunks share.
        direct: when files are read past the page cache.
        fsync: whether a write is on the medium before it counts.
        read_only: whether the filesystem tier only reads.
        touch: whether a read renews a file's time.
        label: text that enters the namespace.
        shm_dir: absolute directory of a memory filesystem.
        eviction: name of the memory tier's policy.
        admission: name of the policy for writes to the filesystem tier.
        announce: whether KV events tell what the filesystem tier held when the engine started.
        capacity: of all that kvstrata keeps below `path`; None for no bound.
        keep_free: bytes of the file system that are left to others.
        ttl: seconds after which what was not used counts as absent; None for never.
        floor: bytes that the engine's namespace keeps before others go.
        weight: ages of the namespace's files count divided by this.
        unused_after: seconds after which a namespace that nobody uses goes first.
        tenants: what tenants may hold; None for no limits.
        seal: how files are guarded against strangers.
        keys: absolute path of the file that holds the keys; None for the environment's.
        shared_with: who else may use the files.
        world_writable: whether everybody may be able to write `path`.

    Each field's metadata holds `doc`, `allowed`, `unit` and `unset` (text), and `parse`.
    """

    path: str | None = _option(
        None,
        read_directory,
        'an absolute directory, "~" allowed',
        "Directory of the filesystem tier, local or shared; made if it is absent.",
        unset="not set: memory only",
    )
    memory: int | None = _option(
        None,
        read_positive_size,
        SIZE_ALLOWED + ", greater than 0",
        "Host memory of the arena: the memory tier, and where storage traffic passes through.",
        unit="bytes",
        unset="chosen at start, and logged",
    )
    io_threads: int = _option(
        0,
        read_threads,
        f"a whole number from 0 to {MAX_THREADS}",
        "Threads that read and write files; 0 follows the number of processors.",
        unit="threads",
    )
    read_deadline: float = _option(
        10.0,
        read_seconds,
        f"a number of seconds greater than 0, at most {MAX_SECONDS:.0f}",
        "A read from storage that takes longer counts as a miss, and the tokens are computed.",
        unit="s",
    )
    store_queue: int = _option(
        256 << 20,
        read_positive_size,
        SIZE_ALLOWED + ", greater than 0",
        "Bytes that may wait to be written to storage, at most half of the arena, and where it is slow what "
        "it takes in ten seconds; further writes are dropped and counted.",
        unit="bytes",
    )
    segment: int = _option(
        4 << 20,
        read_size,
        SIZE_ALLOWED,
        "Small chunks that are stored together share a file up to this size, if at least six fit; 0 for a "
        "file for each chunk.",
        unit="bytes",
    )
    fsync: bool = _option(
        False,
        read_flag,
        "true or false",
        "Force each file to the medium before it counts as stored; slower, survives a power cut.",
    )
    read_only: bool = _option(
        False,
        read_flag,
        "true or false",
        "Read files, never write, remove or touch one.",
    )
    touch: bool = _option(
        True,
        read_flag,
        "true or false",
        "Renew a file's time when it is read, so that age says how long it has been unused.",
    )
    direct: str = _option(
        "never",
        one_of(DIRECT),
        " or ".join(f'"{name}"' for name in DIRECT),
        "Read files past the page cache (O_DIRECT): where they are large and not in it, never, or always. "
        "Where the file system cannot, reads are buffered.",
    )
    label: str = _option(
        "",
        read_label,
        f"text of at most {MAX_LABEL} characters",
        "Enters the namespace: engines with different labels never share a file.",
    )
    shm_dir: str = _option(
        "/dev/shm",
        read_directory,
        'an absolute directory, "~" allowed',
        "Memory filesystem that holds the arena.",
    )
    eviction: str = _option(
        "boundary",
        one_of(EVICTION),
        " or ".join(f'"{name}"' for name in EVICTION),
        "Which chunks leave a full memory tier: whole boundaries of least worth, as learned from what is "
        "reused; those unused for longest; or as ARC says.",
    )
    admission: str = _option(
        "always",
        one_of(ADMISSION),
        " or ".join(f'"{name}"' for name in ADMISSION),
        "What is written to `path`: everything; at once only prefixes of kinds that were asked again often "
        "enough, others when they are; or nothing before it is asked a second time.",
    )
    announce: bool = _option(
        True,
        read_flag,
        "true or false",
        "Where KV events are on: look once through the files that are there at the start and tell a router "
        "of them.",
    )
    capacity: Capacity | None = _option(  # noqa: RUF009  # as the others: a field with metadata
        None,
        read_capacity,
        SIZE_ALLOWED + ', greater than 0, or a share of the file system such as "80%"',
        "Bytes that all engines together keep below `path`; beyond them, what was not used for longest is "
        "removed.",
        unset="not set: no bound",
    )
    keep_free: int = _option(
        0,
        read_size,
        SIZE_ALLOWED,
        "Bytes of the file system below `path` that are left to others, however much `capacity` allows.",
        unit="bytes",
    )
    ttl: float | None = _option(
        None,
        read_positive_age,
        AGE_ALLOWED,
        "What the engine's namespace has not used for so long is not read any more, and removed.",
        unset="not set: never",
    )
    floor: int = _option(
        0,
        read_size,
        SIZE_ALLOWED,
        "Bytes that the engine's namespace keeps below `path` as long as others have any to remove.",
        unit="bytes",
    )
    weight: float = _option(
        1.0,
        read_weight,
        f"a number from {1 / MAX_WEIGHT:g} to {MAX_WEIGHT}",
        "How much the engine's namespace counts: its files stay so many times longer unused than those of "
        "one that counts 1.",
    )
    unused_after: float = _option(
        30 * 86400.0,
        read_positive_age,
        AGE_ALLOWED,
        "Where something has to go, namespaces that nobody has used for so long go first; an empty one goes "
        "altogether.",
        unit="age",
    )
    tenants: TenantTerms | None = _option(  # noqa: RUF009  # as the others: a field with metadata
        None,
        read_terms,
        '{"default": {"quota": "10GiB", "weight": 1}, "<name>": {...}}',
        "What tenants (requests of one `cache_salt`) may hold below `path`: bytes, and their part of a full "
        "one. `kvstrata tenant SALT` tells a tenant's name.",
        unset="not set: what they use",
    )
    seal: str = _option(
        "none",
        one_of(SEALS),
        " or ".join(f'"{name}"' for name in SEALS),
        "Whether whoever can write or read `path`, but has none of the `keys`, is kept from planting chunks "
        '("authenticate"), and from reading them too ("encrypt").',
    )
    keys: str | None = _option(
        None,
        read_directory,
        'an absolute path, "~" allowed',
        "File of keys for `seal`, as `kvstrata keygen` makes it: the first one seals, all open.",
        unset="not set: the variable KVSTRATA_KEYS",
    )
    shared_with: str = _option(
        "user",
        one_of(SHARED_WITH),
        " or ".join(f'"{name}"' for name in SHARED_WITH),
        "Who else may use the files that are made: the same user's processes, or all of the same group.",
    )
    world_writable: bool = _option(
        False,
        read_flag,
        "true or false",
        "Accept a `path` that everybody may write. Such a one is refused otherwise.",
    )

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> "Options":
        """Options from the mapping that vLLM was given. A null counts as not given.

        Raises:
            ConfigError: an unknown key (the nearest known one is named), a wrong value (what is
                allowed and what was given are named), or neither `path` nor `memory`.
        """
        if "canonical_layout" in config:
            raise ConfigError(
                "kv_connector_extra_config: 'canonical_layout' is not supported by kvstrata; "
                "remove it"
            )
        known = {option.name: option for option in fields(cls)}
        unknown = [key for key in config if key not in known and key not in ENGINE_KEYS]
        if unknown:
            raise ConfigError(_unknown(unknown[0], [*known, *ENGINE_KEYS]))
        values = {
            name: _parse_one(option, config[name])
            for name, option in known.items()
            if config.get(name) is not None
        }
        if "path" not in values and "memory" not in values:
            raise ConfigError(
                "kv_connector_extra_config: nowhere to keep anything: give 'path' (a directory, "
                'such as "/mnt/kv") or \'memory\' (a size, such as "8GiB"), or both'
            )
        return cls(**values)


def _parse_one(option: "Field[Any]", value: object) -> Any:
    try:
        return option.metadata["parse"](value)
    except ValueError as error:
        raise ConfigError(
            _wrong(f"option '{option.name}'", option.metadata["allowed"], value, error)
        ) from None


def _unknown(key: object, known: list[str]) -> str:
    text = str(key)
    near = [_ELSEWHERE[text]] if text in _ELSEWHERE else []
    near = near or difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.5)
    remedy = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    return f"kv_connector_extra_config: unknown option {_shown.repr(key)}; {remedy}"


class OptionRow(NamedTuple):
    """One line of the option table; all text."""

    name: str
    default: str
    allowed: str
    doc: str


def option_table() -> list[OptionRow]:
    """Every option, in the order of `Options`."""
    return [
        OptionRow(option.name, _default(option), option.metadata["allowed"], option.metadata["doc"])
        for option in fields(Options)
    ]


def _default(option: "Field[Any]") -> str:
    default: Any = option.default
    if default is None:
        return str(option.metadata["unset"])
    if option.metadata["unit"] == "bytes":
        return f'"{format_size(default).replace(" ", "")}"'
    if option.metadata["unit"] == "age":
        return f'"{format_age(default).replace(" ", "")}"'
    if isinstance(default, float):
        return f"{default:g}"
    return json.dumps(default)
