"""The rules of `routing.boundary` for all replicas at once, over the columns of one prompt. Compiled.

Each step here is the step of the same name there. What makes it fast is below, in `fleet_columns`: full
groups are walked once for 64 replicas, and windows are found in masks that are made once for all.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kvstrata.compiled import compiled, lowest_bit, part
from kvstrata.fleet.index import GROUPS, MEMORY
from kvstrata.fleet.table import Numbers, Words
from kvstrata.routing.fleet_columns import (
    ALIGNMENT,
    BLOCK,
    CHUNK_BLOCKS,
    DEVICES,
    FULL_KIND,
    HASH_TOKENS,
    KIND,
    LOAD_CAP,
    LOCAL_KIND,
    MEMBERS,
    NEED,
    ONCE,
    REACH,
    STATE_KIND,
    STEP,
    TOKENS,
    UNIT,
    WINDOW,
    Columns,
    count_held,
    held_from,
    held_until,
    holds_directly,
    last_complete,
    number,
    run_ends,
)

_ONE = np.uint64(1)
_NONE = np.uint64(0)


@compiled
def answer(
    rows: Words,
    seeds: Words,
    sums: Numbers,
    mounts: Words,
    hashes: Words,
    facts: Numbers,
    masks: Words,
    filled: npt.NDArray[np.uint8],
    among: Words,
    reach: Numbers,
    blocks: Numbers,
) -> None:
    """Boundaries and loads.

    Args:
        rows, seeds, sums, mounts, hashes, facts: see `Columns`.
        masks, filled: room for the columns; only `filled` is reset here.
        among: uint64[words], replicas that are asked about.
        reach: int64[3, replicas], the answer: tokens with the device, with memory, with storage too.
        blocks: int64[2, 2, tiered groups, replicas], the answer: blocks loaded with memory, and with
            storage too, from memory and from storage.
    """
    columns = Columns(rows, seeds, sums, mounts, hashes, facts, masks, filled)
    filled[:] = 0
    blocks[:] = 0
    tiers_asked = 1
    for place in range(len(sums) // 2, len(sums)):  # storage comes behind device and memory
        if sums[place]:
            tiers_asked = 2
    for word in range(len(among)):
        _devices(columns, word, among[word], reach)
        for tiers in range(tiers_asked):
            _loads(columns, word, among[word], tiers, reach, blocks)
    if tiers_asked == 1:
        for replica in range(reach.shape[1]):
            reach[2, replica] = reach[1, replica]
            for group in range(blocks.shape[2]):
                blocks[1, 0, group, replica] = blocks[0, 0, group, replica]


@part
def _devices(columns: Columns, word: int, among: Any, reach: Numbers) -> None:
    """`device_boundary` for the 64 replicas of a word."""
    starts = np.empty(64, np.int64)
    for replica in range(64):
        starts[replica] = 0 if among >> np.uint64(replica) & _ONE else -1
    devices, tokens = number(columns, DEVICES), number(columns, TOKENS)
    runs = np.zeros((devices, 64), np.int64)
    for column in range(devices):
        unit = columns.facts[column, UNIT]
        if columns.facts[column, KIND] != FULL_KIND:
            continue
        run_ends(columns, column, word, starts, max(tokens - 1, 0) // unit, runs, column)
        for replica in range(64):
            if runs[column, replica] == 0 and number(columns, ALIGNMENT) >= unit:
                starts[replica] = -1  # nothing there, so nothing at all
    for replica in range(64):
        found = 0
        if among >> np.uint64(replica) & _ONE:
            found = _device(columns, word, replica, runs)
        for tiers in range(3):
            reach[tiers, 64 * word + replica] = found


@part
def _device(columns: Columns, word: int, replica: int, runs: Numbers) -> Any:
    bit = _ONE << np.uint64(replica)
    limit = max(number(columns, TOKENS) - 1, 0)
    devices = number(columns, DEVICES)
    full = np.empty(devices, np.int64)
    for column in range(devices):
        full[column] = -1
    while True:
        current = limit
        for column in range(devices):
            kind, unit = columns.facts[column, KIND], columns.facts[column, UNIT]
            if current == 0:
                return 0
            if kind == FULL_KIND:
                if full[column] < 0:
                    run = min(runs[column, replica], current // unit) * unit
                    full[column] = _full(columns, column, word, bit, run, current)
                current = min(current, full[column])
            elif kind == LOCAL_KIND:
                window = columns.facts[column, WINDOW]
                start = current // window * window // unit
                current = held_from(columns, column, word, bit, start, current // unit) * unit
            else:
                current = last_complete(columns, column, word, bit, current // unit) * unit
        if current >= limit or number(columns, ONCE):
            return current
        limit = current


@part
def _full(columns: Columns, column: int, word: int, bit: Any, hit: int, limit: int) -> Any:
    alignment, unit = number(columns, ALIGNMENT), columns.facts[column, UNIT]
    if alignment < unit:
        end = min(hit + unit - alignment, limit // alignment * alignment)
        while end > hit:
            index = end // number(columns, HASH_TOKENS) - 1
            if holds_directly(columns, column, word, bit, index):
                hit = end
                break
            end -= alignment
    return hit // alignment * alignment


@part
def _loads(
    columns: Columns, word: int, among: Any, tiers: int, reach: Numbers, blocks: Numbers
) -> None:
    """`tier_boundary` for the 64 replicas of a word, and what is loaded for it.

    Args:
        columns: of the prompt.
        word: which 64.
        among: the replicas of them that are asked about.
        tiers: 0 for memory, 1 for memory or storage.
        reach, blocks: see `answer`; the device's part is there already.
    """
    groups = blocks.shape[2]
    if not groups:
        return
    step = number(columns, STEP)
    runs = np.zeros((groups, 64), np.int64)
    _full_runs(columns, word, among, tiers, reach, runs)
    left = among
    while left != _NONE:
        bit = lowest_bit(left)
        left &= left - _ONE
        replica = 64 * word + bit
        computed = reach[0, replica] // step * step
        found = _tier(columns, word, bit, tiers, computed, runs)
        if found > reach[0, replica]:
            reach[1 + tiers, replica] = found
            _count(columns, replica, tiers, computed, found, blocks)


@part
def _full_runs(
    columns: Columns, word: int, among: Any, tiers: int, reach: Numbers, runs: Numbers
) -> None:
    """Where each replica's full groups end in the tiers, in chunks; `runs` is int64[groups, 64]."""
    step, devices = number(columns, STEP), number(columns, DEVICES)
    starts = np.empty(64, np.int64)
    asked = among
    for group in range(runs.shape[0]):
        column = devices + 2 * group + tiers
        unit = columns.facts[column, UNIT]
        if columns.facts[column, KIND] != FULL_KIND:
            return
        for replica in range(64):
            starts[replica] = -1
            if asked >> np.uint64(replica) & _ONE:
                computed = reach[0, 64 * word + replica] // step * step
                if _cap(columns, computed) - computed >= unit:
                    starts[replica] = computed // unit
        end = -(-max(number(columns, TOKENS), 0) // unit)
        run_ends(columns, column, word, starts, end, runs, group)
        for replica in range(64):
            if runs[group, replica] <= starts[replica]:
                asked &= ~(_ONE << np.uint64(replica))


@part
def _cap(columns: Columns, computed: int) -> Any:
    cap = number(columns, TOKENS)
    if number(columns, LOAD_CAP) >= 0:
        cap = min(cap, computed + number(columns, LOAD_CAP))
    columns_end = columns.facts.shape[0] - 1
    windowed = 0
    for column in range(number(columns, DEVICES), columns_end, 2):
        if columns.facts[column, KIND] != FULL_KIND:
            windowed = 1
    cap -= windowed
    for column in range(number(columns, DEVICES), columns_end, 2):
        if columns.facts[column, KIND] == STATE_KIND:
            chunk = columns.facts[column, UNIT]
            cap = cap // chunk * chunk
    return cap


@part
def _tier(
    columns: Columns, word: int, replica: int, tiers: int, computed: int, runs: Numbers
) -> Any:
    bit = _ONE << np.uint64(replica)
    limit = _cap(columns, computed)
    first = True
    while True:
        before = limit
        for group in range(runs.shape[0]):
            column = number(columns, DEVICES) + 2 * group + tiers
            full = columns.facts[column, KIND] == FULL_KIND
            if full and not first:
                continue
            chunk = columns.facts[column, UNIT]
            limit = min(limit, number(columns, TOKENS) // chunk * chunk)
            if number(columns, LOAD_CAP) >= 0:
                limit = limit // chunk * chunk
            if limit - computed < chunk:
                return computed
            if full:
                limit = min(limit, runs[group, replica] * chunk)
            else:
                limit = min(limit, _window(columns, column, word, bit, limit, computed))
            if limit - computed < chunk:
                return computed
        if limit == before:
            return limit
        first = False


@part
def _window(columns: Columns, column: int, word: int, bit: Any, limit: int, computed: int) -> Any:
    """The furthest boundary, at most `limit`, whose window is whole or reaches back to `computed`."""
    chunk, need = columns.facts[column, UNIT], columns.facts[column, NEED]
    start, end = computed // chunk, -(-limit // chunk)
    needed = need
    if columns.facts[column, REACH] >= 0:
        needed = max(-(-(columns.facts[column, REACH] + -limit % chunk) // chunk), 1)
    first = max(start, end - needed)
    unit = held_until(columns, column, word, bit, first, end) - 1
    if unit < first:
        return limit
    whole = last_complete(columns, column, word, bit, unit)
    run = held_from(columns, column, word, bit, start, min(unit, start + need))
    return max(whole, run) * chunk if max(whole, run) > start else computed


@part
def _count(
    columns: Columns, replica: int, tiers: int, computed: int, boundary: int, blocks: Numbers
) -> None:
    """What a resume at `boundary` reads of each group beyond `computed`, by tier."""
    word, bit = replica // 64, _ONE << np.uint64(replica % 64)
    for group in range(blocks.shape[2]):
        column = number(columns, DEVICES) + 2 * group
        chunk = columns.facts[column, UNIT]
        first = max(computed, _first_token(columns, column, boundary))
        start, end = first // chunk, -(-boundary // chunk)
        if end <= start:
            continue
        memory = end - start
        source = 0  # of the first chunk, which may be read in part
        if tiers == 1:
            memory = 0
            if columns.sums[MEMORY * GROUPS + columns.facts[column, MEMBERS]]:
                memory = count_held(columns, column, word, bit, start, end)
            source = 1
            if memory:
                source = 1 - count_held(columns, column, word, bit, start, start + 1)
        each = columns.facts[column, CHUNK_BLOCKS]
        blocks[tiers, 0, group, replica] = memory * each
        blocks[tiers, 1, group, replica] = (end - start - memory) * each
        blocks[tiers, source, group, replica] -= first % chunk // columns.facts[column, BLOCK]


@part
def _first_token(columns: Columns, column: int, boundary: int) -> Any:
    """`GroupGeometry.first_token`."""
    kind = columns.facts[column, KIND]
    if kind == FULL_KIND:
        return 0
    if kind == STATE_KIND:
        return max(boundary - 1, 0)
    if kind == LOCAL_KIND:
        window = columns.facts[column, WINDOW]
        return boundary // window * window
    return max(boundary - columns.facts[column, REACH], 0)
