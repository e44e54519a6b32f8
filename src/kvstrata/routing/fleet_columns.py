"""Presence of a prompt's blocks on all replicas, looked up as far as a rule asks. Compiled.

A column is one thing that a prompt is made of, unit by unit: the blocks of groups that vLLM looks up
together, or one group's chunks in a tier. For each unit it has a mask of the replicas that hold it, and a
mask of those where the window that ends with the unit is complete. Masks are filled in segments of 64
units, when first needed: most prompts are answered from a few segments of most columns.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstrata.compiled import lowest_bit, part, prefetch
from kvstrata.fleet.index import DEVICE, GROUPS, MEMORY, SHARED, STORAGE
from kvstrata.fleet.table import WAYS, Numbers, Words, find, home, key_of, mask_word

SEGMENT = 64
"""Units filled at once."""
LINE_WORDS = 8
"""Words of a cache line."""
KIND, UNIT, NEED, WINDOW, ALIGNED, CHUNK_BLOCKS, REACH, BLOCK, COUNT, MEMBERS = range(10)
"""What `Columns.facts` says of a column: kind of attention (see `FULL_KIND` and what follows it), tokens of
a unit, units of a complete window, tokens of a local attention chunk, tokens that ends of windows are a
multiple of, blocks of a unit, tokens of a load's window, tokens of a block, how many groups, and these."""
ALIGNMENT, ONCE, STEP, TOKENS, LOAD_CAP, HASH_TOKENS, DEVICES, ROOM = range(8)
"""What the last row of `Columns.facts` says of model and request; ONCE: groups are asked once (see
`device_boundary`); STEP: tokens of whole blocks of all groups; LOAD_CAP: -1 for none; DEVICES: how many
columns are the device's; ROOM: units that there is room for, a multiple of `SEGMENT`."""
FULL_KIND, WINDOW_KIND, LOCAL_KIND, STATE_KIND = range(4)
_ONE = np.uint64(1)
_NONE = np.uint64(0)
_ALL = np.uint64(2**64 - 1)


class Columns(NamedTuple):
    """All columns of one prompt: first the device's; then, for each group that tiers keep, one for memory
    and one for memory or storage.

    Attributes:
        rows, seeds: of the fleet's table.
        sums, mounts: of the fleet index.
        hashes: uint64[n], the prompt's.
        facts: int64[columns + 1, MEMBERS + most groups of a column].
        masks: uint64[columns, words, 2 * ROOM + ROOM / SEGMENT]: replicas that hold a unit; then those
            where the window that ends with a unit is complete; then the union of these by segment.
        filled: uint8[columns, ROOM / SEGMENT]: 1 when a segment's first part is there, 2 with the others.
    """

    rows: Words
    seeds: Words
    sums: Numbers
    mounts: Words
    hashes: Words
    facts: Numbers
    masks: Words
    filled: npt.NDArray[np.uint8]


@part
def number(columns: Columns, what: int) -> Any:
    """One of the model's or the request's own facts."""
    return columns.facts[-1, what]


@part
def held_from(columns: Columns, column: int, word: int, bit: Any, low: int, high: int) -> Any:
    """Where a replica's unbroken run of held units that begins at `low` ends, at most at `high`."""
    masks, unit = columns.masks, low
    room = min(high, number(columns, ROOM))
    while unit < room:
        fill(columns, column, unit // SEGMENT)
        stop = min(room, (unit // SEGMENT + 1) * SEGMENT)
        while unit < stop:
            if (masks[column, word, unit] & bit) == _NONE:
                return unit
            unit += 1
    return unit


@part
def held_until(columns: Columns, column: int, word: int, bit: Any, low: int, high: int) -> Any:
    """Where a replica's unbroken run of held units that ends at `high` begins, at least at `low`."""
    masks, unit = columns.masks, high
    if unit > low and unit > number(columns, ROOM):
        return unit  # nothing is known there, so nothing is held
    while unit > low:
        segment = (unit - 1) // SEGMENT
        fill(columns, column, segment)
        stop = max(low, segment * SEGMENT)
        while unit > stop:
            if (masks[column, word, unit - 1] & bit) == _NONE:
                return unit
            unit -= 1
    return unit


@part
def count_held(columns: Columns, column: int, word: int, bit: Any, low: int, high: int) -> Any:
    """How many units a replica holds from `low` to before `high`."""
    masks, count, unit = columns.masks, 0, low
    room = min(high, number(columns, ROOM))
    while unit < room:
        fill(columns, column, unit // SEGMENT)
        stop = min(room, (unit // SEGMENT + 1) * SEGMENT)
        while unit < stop:
            if masks[column, word, unit] & bit:
                count += 1
            unit += 1
    return count


@part
def fill(columns: Columns, column: int, segment: int) -> None:
    """Look up a segment, unless that was done."""
    if columns.filled[column, segment]:
        return
    devices = number(columns, DEVICES)
    if column < devices:
        _set(columns, column, segment, _ALL)
        if columns.facts[column, KIND] == FULL_KIND and segment:
            _give_up(columns, column, segment)
        for member in range(columns.facts[column, COUNT]):
            group = columns.facts[column, MEMBERS + member]
            _look_up(columns, column, segment, DEVICE * GROUPS + group, column, True)
        columns.filled[column, segment] = 1
        return
    memory = column - (column - devices) % 2
    both = memory + 1
    group = columns.facts[column, MEMBERS]
    _set(columns, memory, segment, _NONE)
    _look_up(columns, memory, segment, MEMORY * GROUPS + group, memory, False)
    if columns.sums[SHARED * GROUPS + group]:
        _set(columns, both, segment, _NONE)
        _look_up(columns, both, segment, SHARED * GROUPS + group, both, False)
        _inherit(columns, both, segment)
    else:
        _set(columns, both, segment, _NONE)
    _look_up(columns, both, segment, STORAGE * GROUPS + group, both, False)
    for word in range(columns.masks.shape[1]):
        for unit in range(segment * SEGMENT, (segment + 1) * SEGMENT):
            columns.masks[both, word, unit] |= columns.masks[memory, word, unit]
    columns.filled[memory, segment] = 1
    columns.filled[both, segment] = 1


@part
def _set(columns: Columns, column: int, segment: int, value: Any) -> None:
    for word in range(columns.masks.shape[1]):
        for unit in range(segment * SEGMENT, (segment + 1) * SEGMENT):
            columns.masks[column, word, unit] = value


@part
def _give_up(columns: Columns, column: int, segment: int) -> None:
    """Nothing is looked up for replicas whose unbroken runs from the beginning have ended before."""
    masks, low = columns.masks, segment * SEGMENT
    if columns.filled[column, segment - 1]:
        for word in range(masks.shape[1]):
            if masks[column, word, low - 1] == _NONE:
                masks[column, word, low : low + SEGMENT] = _NONE


@part
def _look_up(
    columns: Columns, column: int, segment: int, place: int, into: int, together: bool
) -> None:
    """Holders at one place into the masks of a segment: what all have (`together`), or any has."""
    if not columns.sums[place]:
        if together:
            _set(columns, into, segment, _NONE)
        return
    rows, seeds, hashes, masks = columns.rows, columns.seeds, columns.hashes, columns.masks
    words = masks.shape[1]
    step = columns.facts[column, UNIT] // number(columns, HASH_TOKENS)
    low, high = segment * SEGMENT, (segment + 1) * SEGMENT
    known = min(max(len(hashes) // step, low), high)
    for unit in range(low, known):
        prefetch(rows, home(seeds, key_of(seeds, place, hashes[(unit + 1) * step - 1])), 0)
    if words == 1 and together:  # the common case, without the loops of the others
        for unit in range(low, known):
            entry = find(rows, seeds, key_of(seeds, place, hashes[(unit + 1) * step - 1]))
            masks[into, 0, unit] &= rows[entry >> 2, WAYS + (entry & 3)] if entry >= 0 else _NONE
        for unit in range(known, high):
            masks[into, 0, unit] = _NONE
        return
    entries = np.empty(SEGMENT, np.int64)
    for unit in range(low, known):
        entry = find(rows, seeds, key_of(seeds, place, hashes[(unit + 1) * step - 1]))
        entries[unit - low] = entry
        if entry >= 0 and words > 1:  # one word lies beside its key
            for word in range(0, words, LINE_WORDS):
                prefetch(rows, entry >> 2, WAYS + (entry & 3) * words + word)
    for word in range(words):
        if together and _is_empty(masks, into, word, low, high):
            continue
        for unit in range(low, known):
            mask = mask_word(rows, entries[unit - low], words, word)
            if together:
                masks[into, word, unit] &= mask
            else:
                masks[into, word, unit] |= mask
        if together:
            for unit in range(known, high):
                masks[into, word, unit] = _NONE


@part
def _is_empty(masks: Words, column: int, word: int, low: int, high: int) -> bool:
    if masks[column, word, low] != _NONE:
        return False
    union = _NONE
    for unit in range(low, high):
        union |= masks[column, word, unit]
    return bool(union == _NONE)


@part
def _inherit(columns: Columns, column: int, segment: int) -> None:
    """Give what owners hold to the replicas that mount them."""
    words = columns.masks.shape[1]
    owners = np.empty(words, np.uint64)
    for unit in range(segment * SEGMENT, (segment + 1) * SEGMENT):
        for word in range(words):
            owners[word] = columns.masks[column, word, unit]
            columns.masks[column, word, unit] = _NONE
        for word in range(words):
            left = owners[word]
            while left != _NONE:
                owner = 64 * word + lowest_bit(left)
                left &= left - _ONE
                for other in range(words):
                    columns.masks[column, other, unit] |= columns.mounts[owner, other]


@part
def holds_directly(columns: Columns, column: int, word: int, bit: np.uint64, index: int) -> bool:
    """Whether a device holds, of all the column's groups, what ends with a hash; at no unit's end."""
    if index >= len(columns.hashes):
        return False
    words = columns.masks.shape[1]
    for member in range(columns.facts[column, COUNT]):
        place = DEVICE * GROUPS + columns.facts[column, MEMBERS + member]
        key = key_of(columns.seeds, place, columns.hashes[index])
        mask = mask_word(columns.rows, find(columns.rows, columns.seeds, key), words, word)
        if (mask & bit) == _NONE:
            return False
    return True


@part
def run_ends(
    columns: Columns, column: int, word: int, starts: Numbers, end: int, runs: Numbers, row: int
) -> None:
    """For 64 replicas, where an unbroken run of held units ends.

    Args:
        columns: of the prompt.
        column: which one.
        word: which 64.
        starts: int64[64], unit where each replica's run starts; -1 for replicas that are not asked about.
        end: units at most.
        runs: int64[any, 64], where the answers go: at least the start.
        row: of `runs`.
    """
    waiting = _NONE
    for replica in range(64):
        runs[row, replica] = max(starts[replica], 0)
        if 0 <= starts[replica] < end:
            waiting |= _ONE << np.uint64(replica)
    end = min(end, number(columns, ROOM))
    running = _NONE
    unit = next_start = _next_start(starts, waiting, end)
    while unit < end:
        if unit == next_start:
            joining = _starting_at(starts, waiting, unit)
            running |= joining
            waiting &= ~joining
            next_start = _next_start(starts, waiting, end)
        if running == _NONE:
            unit = next_start
            continue
        fill(columns, column, unit // SEGMENT)
        stop = min(end, next_start, (unit // SEGMENT + 1) * SEGMENT)
        while unit < stop and running != _NONE:
            held = columns.masks[column, word, unit]
            if running & ~held:
                _record(runs, row, running & ~held, unit)
                running &= held
            unit += 1
    _record(runs, row, running, end)


@part
def _record(runs: Numbers, row: int, replicas: Any, value: int) -> None:
    while replicas != _NONE:
        runs[row, lowest_bit(replicas)] = value
        replicas &= replicas - _ONE


@part
def _next_start(starts: Numbers, waiting: Any, end: int) -> int:
    found = end
    while waiting != _NONE:
        found = min(found, starts[lowest_bit(waiting)])
        waiting &= waiting - _ONE
    return found


@part
def _starting_at(starts: Numbers, waiting: Any, unit: int) -> Any:
    found = _NONE
    while waiting != _NONE:
        if starts[lowest_bit(waiting)] == unit:
            found |= waiting & (~waiting + _ONE)
        waiting &= waiting - _ONE
    return found


@part
def last_complete(columns: Columns, column: int, word: int, bit: Any, limit: int) -> int:
    """The furthest end, in units and at most `limit`, of a complete window of one replica; 0 for none.

    A window that would begin before the prompt is complete with all from the beginning.
    """
    room = number(columns, ROOM)
    limit = min(limit, room)
    while limit > 0:
        segment = (limit - 1) // SEGMENT
        if columns.filled[column, segment] < 2:
            _fill_ends(columns, column, segment)
        low = segment * SEGMENT
        if columns.masks[column, word, 2 * room + segment] & bit:
            while limit > low:
                if columns.masks[column, word, room + limit - 1] & bit:
                    return limit
                limit -= 1
        limit = low
    return 0


@part
def _fill_ends(columns: Columns, column: int, segment: int) -> None:
    room = number(columns, ROOM)
    need, unit = columns.facts[column, NEED], columns.facts[column, UNIT]
    aligned = columns.facts[column, ALIGNED]
    low, high = segment * SEGMENT, (segment + 1) * SEGMENT
    first = max(low - need + 1, 0)
    for earlier in range(first // SEGMENT, segment + 1):
        fill(columns, column, earlier)
    complete = np.empty(high - first, np.uint64)
    for word in range(columns.masks.shape[1]):
        for index in range(len(complete)):
            complete[index] = columns.masks[column, word, first + index]
        covered = 1
        while covered < need:
            step = min(covered, need - covered)
            for index in range(len(complete) - 1, step - 1, -1):
                complete[index] &= complete[index - step]
            covered += step
        union = _NONE
        for end in range(low, high):
            mask = complete[end - first] if (end + 1) * unit % aligned == 0 else _NONE
            columns.masks[column, word, room + end] = mask
            union |= mask
        columns.masks[column, word, 2 * room + segment] = union
    columns.filled[column, segment] = 2
