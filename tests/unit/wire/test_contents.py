"""A snapshot tells what the events told, byte for byte and count for count."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.wire.batches import Batch, Cleared, Removed, Stored, WireError
from kvstrata.wire.contents import Contents
from kvstrata.wire.snapshot import VERSION, EngineFacts, GroupFacts, Header, Place, decode, encode

HEADER = Header(VERSION, b"e" * 16, 7, 1.5, 0)
hashes = st.lists(st.integers(0, 7) | st.integers(2**64 - 4, 2**64 - 1), max_size=6)
places = st.sampled_from([("GPU", None), ("CPU", None), ("STORAGE", "a"), ("STORAGE", "b")])


@st.composite
def events(draw):
    if draw(st.integers(0, 9)) == 0:
        return Cleared()
    medium, owner = draw(places)
    named = draw(hashes)
    if draw(st.booleans()):
        return Stored(named, None, 0, 0, medium, draw(st.integers(0, 2)), owner=owner)
    return Removed(named, medium, draw(st.integers(0, 2)), owner=owner)


def as_counts(snapshot) -> dict:
    found: dict = {}
    for place, (held, again) in snapshot.held.items():
        counts = dict.fromkeys(held.tolist(), 1)
        assert len(counts) == len(held), "a hash is named twice"
        for value in again.tolist():
            counts[value] += 1
        found[place] = counts
    return found


@given(st.lists(st.lists(events(), max_size=5), max_size=12))
def test_a_snapshot_carries_what_the_events_left(batches) -> None:
    contents = Contents()
    counted: dict[Place, dict[int, int]] = {}
    for batch in batches:
        contents.apply(Batch(0.0, 0, batch, 0))
        for event in batch:
            if isinstance(event, Cleared):
                counted = {place: n for place, n in counted.items() if place.medium != "GPU"}
                continue
            counts = counted.setdefault(Place(event.medium, event.group, event.owner), {})
            for value in event.hashes:
                if isinstance(event, Stored):
                    more = counts.get(value, 0) + 1
                    counts[value] = more if event.medium == "GPU" else 1
                else:
                    counts[value] = max(counts.get(value, 0) - 1, 0)
    expected = {
        place: left for place, n in counted.items() if (left := {k: v for k, v in n.items() if v})
    }
    snapshot = decode(encode(HEADER, contents.parts()))
    assert as_counts(snapshot) == expected
    assert snapshot.header == HEADER


def test_a_large_place_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstrata.wire.snapshot.MOST_HASHES", 10)
    hashes = np.arange(25, dtype=np.uint64)
    parts = list(encode(HEADER, [(Place("GPU", 1), hashes, hashes[:3])]))
    assert len(parts) == 4
    held, again = decode(parts).held[Place("GPU", 1)]
    assert held.tolist() == list(range(25)) and again.tolist() == [0, 1, 2]


def test_facts_travel() -> None:
    facts = EngineFacts(
        "m", "sha256", b"n" * 32, 16, 128, (GroupFacts(0, "full", 16, 4, 1024),), "s@1"
    )
    header = Header(VERSION, b"e" * 16, -1, 0.0, 3, (b"d" * 16,), facts)
    assert decode(encode(header)).header == header


@pytest.mark.parametrize("parts", [[], [b""], [b"\xc1"], [b"\x90"]])
def test_what_is_no_answer_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(parts)


def test_a_part_of_broken_hashes_is_refused() -> None:
    header, part = encode(
        HEADER, [(Place("GPU", 0), np.arange(4, dtype=np.uint64), np.empty(0, np.uint64))]
    )
    with pytest.raises(WireError):
        decode([header, part.replace(b"\xc4\x20", b"\xc4\x1f")[:-1]])


def test_another_version_is_named() -> None:
    header = Header(VERSION + 1, b"e" * 16, 0, 0.0, 0)
    with pytest.raises(WireError, match=f"version {VERSION + 1}"):
        decode(encode(header))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    with contextlib.suppress(WireError):
        decode([data])
