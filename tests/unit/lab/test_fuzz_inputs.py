"""What is fuzzed holds on every kept input, and on some thousand changes of them, always the same."""

import random
from pathlib import Path

import pytest

from lab.fuzz import inputs
from lab.fuzz.targets import TARGETS

CHANGED = {"records": 400, "segments": 400, "files": 60, "documents": 150, "snapshots": 1000}
"""Inputs that are made of the kept ones."""


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_and_changes_of_them(name: str, tmp_path: Path) -> None:
    run = TARGETS[name].make(tmp_path)
    known = inputs.known(name)
    assert known
    for data in known:
        run(data)
    chance = random.Random(name)
    for _ in range(CHANGED[name]):
        run(_changed(chance, chance.choice(known), TARGETS[name].longest))


def _changed(chance: random.Random, data: bytes, longest: int) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = chance.randbytes(1)
            case 1:
                changed[at:at] = chance.randbytes(chance.choice((1, 2, 4, 8)))
            case 2:
                del changed[at : at + chance.randrange(1, 9)]
            case 3:
                changed += chance.randbytes(6)
    return bytes(changed[:longest])
