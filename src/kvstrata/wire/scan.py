"""Reading the plain kind of KV event batch without a Python object for each event or hash. Compiled.

Plain is what engines publish: maps with names for keys, hashes as whole numbers, text in ASCII. Of anything
else `scan_batch` only says that it is not plain, and the slower reader in `batches` takes it; both give
equal answers where both answer.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstrata.compiled import compiled, part
from kvstrata.wire.msgpack import (
    NIL,
    NOT_PLAIN,
    Bytes,
    container,
    number,
    size_of_number,
    skip,
    small_number,
    text,
    which,
)

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

KIND, HASHES, HASHES_END, HAS_PARENT, TOKENS, BLOCK_TOKENS, GROUP, WINDOW = range(8)
MEDIUM, OWNER, SPEC, LORA, LOCALITY = 8, 10, 12, 14, 16
FIELDS = 18
"""Entries of an event's row. WINDOW is -1 for none. From MEDIUM on: where a text begins in the payload, and
its length, -1 for none."""
STORED, REMOVED, CLEARED = range(3)
TIME, RANK, EVENTS = 0, 1, 2

_FLOAT64 = 0xCB
_NAMES = (
    b"type",
    b"block_hashes",
    b"parent_block_hash",
    b"token_ids",
    b"block_size",
    b"group_idx",
    b"kv_cache_spec_sliding_window",
    b"medium",
    b"ownership",
    b"kv_cache_spec_kind",
    b"lora_name",
    b"locality",
    b"lora_id",
)
_TYPE, _HASHES, _PARENT, _IDS, _SIZE, _INDEX, _SLIDING, _TEXTS, _LORA_ID = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    12,
)
_KINDS = (b"BlockStored", b"BlockRemoved", b"AllBlocksCleared")


def _table(names: tuple[bytes, ...]) -> Bytes:
    """Names one a row: length, then the bytes."""
    table = np.zeros((len(names), 32), np.uint8)
    for row, name in zip(table, names, strict=True):
        row[0] = len(name)
        row[1 : len(name) + 1] = np.frombuffer(name, np.uint8)
    return table


_NAME_TABLE = _table(_NAMES)
_KIND_TABLE = _table(_KINDS)


class Scanned(NamedTuple):
    """A batch as it was read.

    Attributes:
        time: seconds.
        rank: data-parallel rank; 0 when there is none.
        rows: int64[events, FIELDS].
        hashes: uint64[], of all events, in order.
        parents: uint64[events].
    """

    time: float
    rank: int
    rows: Numbers
    hashes: Words
    parents: Words


def scan_batch(payload: bytes) -> Scanned | None:
    """Read a batch; None when it is not plain."""
    data = np.frombuffer(payload, np.uint8)
    head = np.zeros(3, np.int64)
    if len(data) < 12 or not _scan_head(data, head):
        return None
    events = int(head[EVENTS])
    # Rows are made for what there can be, not for what a payload says.
    if events * 16 > len(data):
        return None
    rows = np.empty((events, FIELDS), np.int64)
    parents = np.empty(events, np.uint64)
    hashes = np.empty(len(data) // 3, np.uint64)
    count = int(_scan_events(data, head, _NAME_TABLE, _KIND_TABLE, rows, hashes, parents))
    if count < 0:
        return None
    time = float(data[2:10].view(">f8")[0])
    return Scanned(time, int(head[RANK]), rows, hashes[:count], parents)


@compiled
def _scan_head(data: Bytes, head: Numbers) -> bool:
    """Rank, events, and where they begin (in place of the time)."""
    if (data[0] != 0x92 and data[0] != 0x93) or data[1] != _FLOAT64:
        return False
    events, at = container(data, 10, 0x90, 0xDC)
    head[TIME], head[EVENTS] = at, events
    return bool(events >= 0)


@compiled
def _scan_events(
    data: Bytes,
    head: Numbers,
    names: Bytes,
    kinds: Bytes,
    rows: Numbers,
    hashes: Words,
    parents: Words,
) -> int:
    """All events, and the rank behind them; how many hashes there are, or -1."""
    at, count = head[TIME], 0
    for event in range(len(rows)):
        at, count = _scan_event(data, at, names, kinds, rows, event, hashes, count, parents)
        if at < 0:
            return NOT_PLAIN
    if data[0] == 0x93:
        head[RANK], at = small_number(data, at)
    return count if at == len(data) and head[RANK] >= 0 else NOT_PLAIN


@part
def _scan_event(
    data: Bytes,
    at: int,
    names: Bytes,
    kinds: Bytes,
    rows: Numbers,
    event: int,
    hashes: Words,
    count: int,
    parents: Words,
) -> Any:
    """One event into its row; where it ends (-1 when it is not plain), and how many hashes there are."""
    row = rows[event]
    row[:] = 0
    row[KIND] = row[WINDOW] = row[HASHES] = -1
    for length in range(MEDIUM + 1, FIELDS, 2):
        row[length] = -1
    parents[event] = np.uint64(0)
    entries, at = container(data, at, 0x80, 0xDE)
    if entries < 0:
        return NOT_PLAIN, count
    for _ in range(entries):
        begin, length = text(data, at)
        if length < 0:
            return NOT_PLAIN, count
        name = which(data, begin, length, names)
        at = begin + length
        if name == _TYPE:
            begin, length = text(data, at)
            if length < 0:
                return NOT_PLAIN, count
            row[KIND] = which(data, begin, length, kinds)
            at = begin + length
        elif name == _HASHES:
            if row[HASHES] >= 0:  # twice
                return NOT_PLAIN, count
            row[HASHES] = count
            at, count = _scan_hashes(data, at, hashes, count)
            row[HASHES_END] = count
        else:
            at = _scan_field(data, at, name, row, event, parents)
        if at < 0 or row[BLOCK_TOKENS] < 0:
            return NOT_PLAIN, count
    if row[KIND] < 0 or (row[KIND] != CLEARED and row[HASHES] < 0):
        return NOT_PLAIN, count
    return at, count


@part
def _scan_hashes(data: Bytes, at: int, hashes: Words, count: int) -> Any:
    entries, at = container(data, at, 0x90, 0xDC)
    if entries < 0 or count + entries > len(hashes):
        return NOT_PLAIN, count
    for _ in range(entries):
        size = size_of_number(data, at)
        if size < 0:
            return NOT_PLAIN, count
        hashes[count] = number(data, at, size)
        count += 1
        at += size
    return at, count


@part
def _scan_field(data: Bytes, at: int, name: int, row: Numbers, event: int, parents: Words) -> Any:
    """One value of an event; where it ends, or -1."""
    if at >= len(data):
        return NOT_PLAIN
    if name in (_PARENT, _SLIDING, _LORA_ID):
        if data[at] == NIL:
            return at + 1
        size = size_of_number(data, at)
        if size < 0:
            return NOT_PLAIN
        value = number(data, at, size)
        if name == _PARENT:
            parents[event] = value
            row[HAS_PARENT] = 1
        elif value >= np.uint64(1 << 62):
            return NOT_PLAIN
        elif name == _SLIDING:
            row[WINDOW] = np.int64(value)
        return at + size
    if name in (_SIZE, _INDEX):
        if name == _SIZE and data[at] == NIL:
            return NOT_PLAIN
        value, at = small_number(data, at)
        row[BLOCK_TOKENS if name == _SIZE else GROUP] = value
        return at if value >= 0 else NOT_PLAIN
    if name == _IDS:
        row[TOKENS], _ = container(data, at, 0x90, 0xDC)
        return skip(data, at) if row[TOKENS] >= 0 else NOT_PLAIN
    if name < 0:
        return skip(data, at)
    field = MEDIUM + 2 * (name - _TEXTS)
    if data[at] == NIL:
        row[field + 1] = -1
        return at + 1
    row[field], row[field + 1] = text(data, at)
    return row[field] + row[field + 1] if row[field + 1] >= 0 else NOT_PLAIN


def mark_runs(payload: bytes, rows: Numbers) -> list[int]:
    """Where runs of events of one kind, group, tier and owner begin, and the end of the last one."""
    starts = np.empty(len(rows) + 1, np.int64)
    count = int(_mark_runs(np.frombuffer(payload, np.uint8), rows, starts))
    found: list[int] = starts[:count].tolist()
    return [*found, len(rows)]


@compiled
def _mark_runs(data: Bytes, rows: Numbers, starts: Numbers) -> int:
    count = 0
    for event in range(len(rows)):
        if event:
            row, before = rows[event], rows[event - 1]
            if (
                row[KIND] == before[KIND]
                and row[GROUP] == before[GROUP]
                and _same_text(data, row, before, MEDIUM)
                and _same_text(data, row, before, OWNER)
            ):
                continue
        starts[count] = event
        count += 1
    return count


@part
def _same_text(data: Bytes, row: Numbers, other: Numbers, field: int) -> bool:
    if row[field + 1] != other[field + 1]:
        return False
    differing = 0
    for index in range(row[field + 1]):
        if data[row[field] + index] != data[other[field] + index]:
            differing += 1
    return differing == 0
