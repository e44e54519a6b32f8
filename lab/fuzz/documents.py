"""The small files of a root, and what engines answer: read, or not there, and never more than that."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from kvstrata.errors import ConfigError
from kvstrata.tiers.catalog import iter_namespaces
from kvstrata.tiers.place import PLACE_FILE, find_place
from kvstrata.tiers.shares import RING, room
from kvstrata.tiers.spaces import TERMS_FILE, read_terms, windowed_groups
from kvstrata.tiers.sweep import USAGE_FILE, read_usage
from kvstrata.wire import batches, snapshot
from lab import golden

_PLACE = re.compile(r"[0-9a-f]{32}|host-[0-9a-f]{27}")


def documents(scratch: Path) -> Callable[[bytes], None]:
    """Input: which file (its last two bits), and its content."""
    tier = golden.tier_of("plain", golden.copy_of("plain", scratch))

    def run(data: bytes) -> None:
        if data:
            readers[data[0] % len(readers)](tier.root, tier.directory, data[1:])

    def _namespace(root: Path, directory: Path, content: bytes) -> None:
        (directory / "namespace.json").write_bytes(content)
        groups = windowed_groups(str(directory))
        assert all(type(one) is int and type(windowed) is bool for one, windowed in groups.items())
        assert [found.path for found in iter_namespaces(root)] == [directory]
        with suppress(ConfigError):
            tier.prepare()

    readers = (_usage, _terms, _namespace, _place)
    return run


def _usage(root: Path, _: Path, content: bytes) -> None:
    (root / USAGE_FILE).write_bytes(content)
    usage = read_usage(root)
    if usage is not None:
        for value in (usage.used, usage.bound, usage.age, room(usage.used, usage.bound)):
            assert math.isfinite(value) and value >= 0
        assert 0 <= usage.place < RING and 0 <= usage.patrol < RING
        msgspec.json.encode(msgspec.structs.replace(usage, round=usage.round + 1))


def _terms(_: Path, directory: Path, content: bytes) -> None:
    (directory / TERMS_FILE).write_bytes(content)
    terms = read_terms(str(directory))
    assert all(math.isfinite(value) and value >= 0 for value in (terms.floor, terms.ttl))
    assert math.isfinite(terms.weight) and terms.weight > 0


def _place(root: Path, _: Path, content: bytes) -> None:
    # A line that is not there yet is waited for: not here, for each of a million files.
    whole = content.ljust(33, b"\0")
    (root / PLACE_FILE).write_bytes(whole)
    name, own = find_place(root, read_only=True)
    assert _PLACE.fullmatch(name)
    assert own == (name.encode() + b"\n" == whole)


def snapshots(_: Path) -> Callable[[bytes], None]:
    """`wire.snapshot.decode` and `wire.batches.decode_any`; input: parts, each behind 2 bytes of length."""

    def run(data: bytes) -> None:
        parts: list[bytes] = []
        at = 0
        while at + 2 <= len(data) and len(parts) < 16:
            length = int.from_bytes(data[at : at + 2], "little")
            parts.append(data[at + 2 : at + 2 + length])
            at += 2 + length
        with suppress(batches.WireError):
            found = snapshot.decode(parts)
            assert found.header.version == snapshot.VERSION
            for hashes, again in found.held.values():
                assert 8 * (len(hashes) + len(again)) <= len(data)
        for part in parts:
            with suppress(batches.WireError):
                batch = batches.decode_any(part)
                assert batch.blocks <= len(part)

    return run
