"""The commands see each chunk of a segment under its own name, and the segment's bytes once."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvstrata.chunks.key import make_key
from kvstrata.cli.main import app
from kvstrata.testing.damage import Damage, damage
from kvstrata.tiers.tier import Stored
from tests.unit.cli.roots import GEOMETRIES, Root, set_age


def run(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(app, [*(str(argument) for argument in arguments), "--json"])
    assert result.exit_code in (0, 1), result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Seven chunks that share a file."""
    root = Root(tmp_path)
    size = GEOMETRIES[0].payload_bytes
    root.keys = [make_key(bytes([one * 37]) * 32, 0) for one in range(7)]
    given = [(key, memoryview(bytearray([one]) * size), 0) for one, key in enumerate(root.keys)]
    assert root.tier.write_many(given) == [Stored(size)] * 7
    assert root.file(root.keys[0]).stat().st_nlink == 7
    return root


def test_verify_names_the_chunk_and_removes_it_alone(root: Root) -> None:
    assert run("verify", root.path)["records"] == 7
    path = root.file(root.keys[2])
    damage(path, Damage.BIT_FLIP)
    found = run("verify", root.path, "--remove")
    assert (found["bad"], found["removed"]) == (1, 1)
    assert [one["path"] for one in found["bad_files"]] == [str(path)]
    assert not path.exists() and root.readable(root.keys[3])
    assert run("verify", root.path)["clean"]


def test_verify_says_of_each_chunk_that_the_table_is_damaged(root: Root) -> None:
    damage(root.file(root.keys[2]), Damage.HEADER_FLIP)
    assert run("verify", root.path)["reasons"] == {"header": 7}


def test_clear_takes_the_names_and_with_the_last_the_bytes(root: Root) -> None:
    keep = root.fill(1)
    set_age(root.file(root.keys[0]), 7200)  # of all seven: they are one file
    found = run("clear", root.path, "--older-than", "1h", "--yes")
    assert found["deleted"] == 7
    assert keep[0].exists() and not any(root.file(key).exists() for key in root.keys[:7])


def test_clear_takes_a_left_over_name_and_leaves_the_chunks(root: Root) -> None:
    first = root.file(root.keys[0])
    left = first.with_name(".tmp-4711-00000000000000ff")
    left.hardlink_to(first)
    set_age(left, 7200)
    assert run("clear", root.path, "--temporary", "--yes")["deleted"] == 1
    assert not left.exists() and all(root.readable(key) for key in root.keys)
