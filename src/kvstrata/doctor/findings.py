"""Findings: what is wrong or worth knowing about a set-up, each with its remedy.

Every finding has a code, and `CODES` says all there is to say about a code, so that the table in the
documents, the engine's log and a code read from a running engine's metrics agree.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Severity(enum.StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """Hits are zero, or may be wrong, or the engine will not start."""
    WARNING = "warning"
    """Less is reused than could be, or it becomes wrong under a condition that is named."""
    NOTE = "note"
    """Worth knowing; nothing need be done."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        code: key of `CODES`.
        severity: see `Severity`.
        subject: what it is about: a group, an option, a path, a replica.
        message: what was found, with the values at hand.
        remedy: what to do; empty for a note that needs nothing.
    """

    code: str
    severity: Severity
    subject: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of finding.

    Attributes:
        severity: of its findings.
        means: what it is and what follows from it.
        remedy: what to do, with `{name}` for values that a finding fills in.
    """

    severity: Severity
    means: str
    remedy: str


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

CODES: Mapping[str, Code] = {
    # The engine's settings.
    "no-connector": Code(
        _E,
        "The engine runs without kvstrata's connector, so nothing leaves the device.",
        "give --kv-transfer-config with KVStrataConnector, as the README shows",
    ),
    "role": Code(
        _E,
        "The connector's `kv_role` lets it only store or only load.",
        'set "kv_role": "kv_both"',
    ),
    "prefix-caching-off": Code(
        _E,
        "Prefix caching is off; vLLM then asks no tier for anything.",
        "give --enable-prefix-caching (some models turn it off by default)",
    ),
    "state-block-size": Code(
        _N,
        "A state (Mamba, linear attention) covers more tokens than the block that vLLM's scheduler goes "
        "back to after its start, so that steps would not end where a state can be kept; kvstrata's "
        "connector puts it right.",
        "give --block-size {size}, and vLLM is right by itself",
    ),
    "chunk-not-used": Code(
        _W,
        "With recurrent states, or with groups whose blocks cover different numbers of tokens, nothing would "
        "be found in chunks of several blocks; kvstrata makes chunks of one block instead.",
        "leave out blocks_per_chunk and block_size in kv_connector_extra_config",
    ),
    "chunk-long": Code(
        _W,
        "Only whole chunks are stored, and requests resume at their ends, so short prompts are not stored "
        "and up to one chunk is computed again each time.",
        "choose a smaller blocks_per_chunk",
    ),
    "retention-interval": Code(
        _E,
        "The retention interval is no multiple of a windowed group's chunk; vLLM refuses to start.",
        "give a multiple of {chunk} tokens to --prefix-cache-retention-interval",
    ),
    "sparse-retention": Code(
        _N,
        "With retention 0 (the default) a window's tail or a state is kept only at the end of a prompt and "
        "of an answer, and where prompts were seen to part; the second prompt with a shared beginning "
        "computes it again, the third is served.",
        "where even the second must be served, give --prefix-cache-retention-interval, a multiple of "
        "{chunk} tokens; it stores more",
    ),
    "hybrid-manager-off": Code(
        _W,
        "The hybrid KV cache manager is off, so layers with a window keep, store and load every token.",
        "leave out --disable-hybrid-kv-cache-manager",
    ),
    "seed-random": Code(
        _E,
        "The xxhash kinds draw a random hash seed when PYTHONHASHSEED is not set: no other engine, and "
        "not this one after a restart, finds what is stored.",
        "set PYTHONHASHSEED to one value for all replicas, or use --prefix-caching-hash-algo sha256",
    ),
    "seed-set": Code(
        _N,
        "PYTHONHASHSEED enters every block hash; replicas share only if it is equal for all.",
        "set it to one value for all replicas, or for none",
    ),
    "lora": Code(
        _W,
        "Chunks of a LoRA adapter are told apart by its name and path, not by its weights: another adapter "
        "under the same name and path would be answered from the old one's chunks.",
        "give each version of an adapter a path of its own, and name it alike on all replicas",
    ),
    "sleep-mode": Code(
        _W,
        "Sleep mode can discard weights: chunks fit only the weights that made them, and files are not "
        "told when others are loaded at waking.",
        "after loading other weights, POST /reset_prefix_cache?reset_external=true before any request",
    ),
    "load-failure-policy": Code(
        _N,
        "The setting has no effect: kvstrata verifies bytes in host memory before it promises them, and vLLM "
        "ends a worker whose copy from there fails.",
        'leave out "kv_load_failure_policy"',
    ),
    "shutdown-timeout": Code(
        _N,
        "Without --shutdown-timeout vLLM kills its engine core at SIGTERM, and chunks that are still to be "
        "written are not stored.",
        "give --shutdown-timeout 20",
    ),
    "prompts-only": Code(
        _N,
        "Only blocks of prompts are stored, not those of answers: the next turn of a conversation computes "
        "the last answer again.",
        'set "offload_prompt_only": false where conversations go on',
    ),
    "memory-only": Code(
        _N,
        "Without `path` the cache ends with the engine, and no other engine shares it.",
        "set path to a directory",
    ),
    "read-only": Code(
        _N,
        "The option `read_only` is set: this engine stores no files.",
        "leave it out where the engine should store",
    ),
    "arena-small": Code(
        _W,
        "The host arena cannot hold one request of the greatest length, so long prompts are served in part.",
        "set memory to at least {size}",
    ),
    "arena-too-small": Code(
        _E,
        "The host arena cannot hold what the smallest boundary needs from every group.",
        "set memory to at least {size}",
    ),
    "estimated": Code(
        _N,
        "vLLM could not build the model here without its weights, so groups are estimated from its config.",
        "ask the running engine: kvstrata doctor --url",
    ),
    # Places.
    "path-unusable": Code(
        _E,
        "The directory cannot be made or read; the engine refuses to start.",
        "give a directory that the engine's user may create, read and write",
    ),
    "path-not-writable": Code(
        _W,
        "The directory can be read but not written: the engine uses what is there and stores nothing.",
        "let the engine's user write there, or set the option read_only",
    ),
    "path-no-rename": Code(
        _E,
        "A file cannot be renamed over another there, which is how chunks are published.",
        "choose a POSIX file system (local, NFS, Lustre, CephFS, ...), not a mounted object store",
    ),
    "path-full": Code(
        _E,
        "The file system, or this user's quota, has no room for one chunk: nothing is stored.",
        "make room (kvstrata clear PATH --older-than 7d) or raise the quota",
    ),
    "path-little-room": Code(
        _W,
        "There is room for only a few prompts of the greatest length.",
        "make room, or put the directory on a larger file system",
    ),
    "shm-unusable": Code(
        _E,
        "The memory filesystem that shall hold the arena is absent or cannot be written.",
        "give the option shm_dir a writable directory of a memory filesystem",
    ),
    "shm-small": Code(
        _E,
        "The memory filesystem has less room than the arena needs; the engine refuses to start.",
        "lower memory, or raise the limit (docker run --shm-size=..., a Kubernetes emptyDir with medium: "
        "Memory, or mount -o remount,size=...)",
    ),
    "shm-on-disk": Code(
        _W,
        "The arena's directory is no memory filesystem, so host memory is written to a disk.",
        "give the option shm_dir a directory of a tmpfs, such as /dev/shm",
    ),
    # Replicas and namespaces.
    "namespace-differs": Code(
        _W,
        "Namespaces of one model differ in this field, so their engines do not share files.",
        "make the engines agree on it, if they should share",
    ),
    "namespace-random": Code(
        _W,
        "Engines with a random hash seed left namespaces that no engine will ever read again.",
        "set PYTHONHASHSEED or use sha256 on all replicas, then kvstrata clear what they left",
    ),
    "namespace-reset": Code(
        _N,
        "An engine reset its external cache; it has a namespace of its own until it restarts.",
        "restart the engine where its weights are again those of the others",
    ),
    "namespace-undescribed": Code(
        _W,
        "A namespace's description is missing or damaged, so it cannot be compared.",
        "an engine that uses it writes it anew at its next start; otherwise clear it",
    ),
    "replica-unreachable": Code(
        _E,
        "The engine does not answer.",
        "check the address, and that the server is up",
    ),
    "replica-silent": Code(
        _N,
        "The engine has published nothing of kvstrata yet; it does so when it steps.",
        "send it one request; if nothing appears, it runs without KVStrataConnector",
    ),
    "replica-namespace": Code(
        _W,
        "Replicas of one model have different namespaces, so they do not share files.",
        "give --path as well, and the field is named",
    ),
    "replica-setting": Code(
        _W,
        "Replicas of one model differ in a setting that enters block hashes or the bytes of blocks.",
        "make them agree on it",
    ),
    "replica-version": Code(
        _N,
        "Replicas run different releases of kvstrata.",
        "finish the upgrade",
    ),
    "live-bad-records": Code(
        _W,
        "Stored chunks could not be used and were computed instead.",
        "kvstrata verify PATH names the files; the label reason says why",
    ),
    "live-dropped-writes": Code(
        _W,
        "Chunks were not stored.",
        "by reason: enlarge memory (no slot), store_queue (queue), or make room (ENOSPC)",
    ),
    "live-deadlines": Code(
        _W,
        "Reads from storage took longer than read_deadline, so tokens were computed.",
        "look at the storage's speed, or raise read_deadline",
    ),
    "live-stuck": Code(
        _E,
        "I/O threads hang in a call that does not return.",
        "look at the file system behind path; restart the engine when it works again",
    ),
}
"""Every kind of finding, by code."""


def found(code: str, subject: str, message: str, **values: object) -> Finding:
    """A finding of this code.

    Args:
        code: key of `CODES`.
        subject: see `Finding`.
        message: see `Finding`.
        values: for the names in the code's remedy.
    """
    kind = CODES[code]
    return Finding(code, kind.severity, subject, message, kind.remedy.format(**values))


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; each finding once."""
    rank = list(Severity)
    return sorted(dict.fromkeys(findings), key=lambda finding: rank.index(finding.severity))


def failed(findings: Iterable[Finding], strict: bool) -> bool:
    """Whether an exit status should say so: an error, or with `strict` a warning."""
    bad = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    return any(finding.severity in bad for finding in findings)


def markdown() -> str:
    """The table of findings, as it stands in `docs/doctor.md`."""
    lines = ["| code | severity | what it means | remedy |", "|---|---|---|---|"]
    for name, code in CODES.items():
        remedy = code.remedy.replace("{", "*").replace("}", "*")
        lines.append(f"| `{name}` | {code.severity} | {code.means} | {remedy} |")
    return "\n".join(lines) + "\n"
