"""`kvstrata usage` on roots that a real tier filled: counted, and estimated from a sample."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvstrata.chunks.key import make_key
from kvstrata.cli.console import _ignore
from kvstrata.cli.holdings import ALL, DAY, HOUR
from kvstrata.cli.looking import look
from kvstrata.cli.main import app
from kvstrata.clock import MonotonicClock
from kvstrata.tiers.keeper import Keeper
from kvstrata.tiers.shares import Bound
from kvstrata.tiers.spaces import Terms, declare, find_spaces
from kvstrata.tiers.tier import Stored
from tests.unit.cli.roots import GEOMETRIES, RECORD_BYTES, Root, set_age, tree


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["usage", *(str(argument) for argument in arguments)])


def document(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def counted(number: int) -> dict[str, int]:
    return {"estimate": number, "low": number, "high": number}


def amount(chunks: int, nbytes: int) -> dict[str, Any]:
    return {"chunks": counted(chunks), "bytes": counted(nbytes)}


@pytest.mark.parametrize("flags", [("--exact",), ()])
def test_a_small_root_is_counted(tmp_path: Path, flags: tuple[str, ...]) -> None:
    root, other = Root(tmp_path), Root(tmp_path, weights="xyz")
    paths = root.fill(5, group=0)
    root.fill(2, group=1)
    other.fill(3)
    for path, age in zip(paths, (-DAY, 0, 2 * HOUR, 3 * DAY, 20 * DAY), strict=True):
        set_age(path, age)
    root.temporary(age=10)
    root.temporary(age=2 * HOUR)
    (tmp_path / "README").write_text("not ours")
    (root.directory / "mine").mkdir()
    (paths[0].parent / "notes.txt").write_text("not ours")
    before = tree(tmp_path)
    found = document(tmp_path, *flags)
    assert tree(tmp_path) == before
    full, window = RECORD_BYTES[0], RECORD_BYTES[1]
    assert (found["exact"], found["share"], found["chunks_seen"]) == (True, 1.0, 10)
    assert {name: found[name] for name in ("chunks", "bytes")} == amount(10, 8 * full + 2 * window)
    first, second = sorted(found["namespaces"], key=lambda one: one["chunks"]["estimate"])[::-1]
    ages = first.pop("newest_age_s"), first.pop("oldest_age_s")
    assert ages[0] == 0 and ages[1] == pytest.approx(20 * DAY, abs=60)
    assert first == {
        "directory": root.directory.name,
        "model": "org/tiny",
        "fingerprint": root.namespace.fingerprint.hex(),
        **amount(7, 5 * full + 2 * window),
        "groups": {"0": amount(5, 5 * full), "1": amount(2, 2 * window)},
    }
    assert second["groups"] == {"0": amount(3, 3 * full)}
    assert {name: one["chunks"]["estimate"] for name, one in found["last_used"].items()} == {
        "<1h": 7,
        "1h-1d": 1,
        "1d-7d": 1,
        ">7d": 1,
    }
    assert found["tenants"] == {"none": amount(10, 8 * full + 2 * window)}
    assert found["temporary"]["files"] == counted(2)
    assert found["temporary"]["bytes"] == counted(2 * len(b"half a record"))
    assert found["temporary"]["left_over"] == counted(1)
    assert found["foreign"] == counted(3)
    assert found["bound"] is None
    assert 0 < found["disk"]["available"] <= found["disk"]["bytes"]


def test_a_sample_is_within_its_interval_and_reads_its_share(tmp_path: Path) -> None:
    """By seeds, against what is there."""
    root, other = Root(tmp_path), Root(tmp_path, weights="xyz")
    chance = random.Random(7)
    for one, chunks, group in ((root, 900, 0), (root, 300, 1), (other, 300, 0)):
        payload = memoryview(bytearray(GEOMETRIES[group].payload_bytes))
        for _ in range(chunks):
            written = one.tier.write(make_key(chance.randbytes(32), group), payload)
            assert isinstance(written, Stored)
    truth = {
        ALL: 1200 * RECORD_BYTES[0] + 300 * RECORD_BYTES[1],
        ("namespace", root.directory.name): 900 * RECORD_BYTES[0] + 300 * RECORD_BYTES[1],
        ("group", root.directory.name, "1"): 300 * RECORD_BYTES[1],
        ("age", "1d-7d"): 0,
    }
    held = dict.fromkeys(truth, 0)
    trials = 60
    for seed in range(trials):
        found = look(
            tmp_path,
            [one.path for one in find_spaces(tmp_path)],
            enough=200,
            tenants=False,
            now=root.file_time(),
            chance=random.Random(seed),
            advance=_ignore,
        )
        assert found.share < 0.3 and found.directories < 500 and 200 <= found.chunks.files < 260
        for part, nbytes in truth.items():
            interval = found.chunks.nbytes(part, found.share)
            held[part] += interval.low <= nbytes <= interval.high
    assert all(count >= 0.88 * trials for count in held.values()), held


def test_a_sample_says_that_it_is_one(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(400)
    found = document(tmp_path, "--sample", "100")
    assert not found["exact"] and found["share"] < 0.6
    assert found["chunks"]["low"] < 400 < found["chunks"]["high"]
    assert "estimated from 1" in run(tmp_path, "--sample", "100").stdout


def test_chunks_that_share_a_file_count_its_bytes_once(tmp_path: Path) -> None:
    root = Root(tmp_path)
    size = GEOMETRIES[0].payload_bytes
    keys = [make_key(bytes([one * 37]) * 32, 0) for one in range(7)]
    given = [(key, memoryview(bytearray(size)), 0) for key in keys]
    assert root.tier.write_many(given) == [Stored(size)] * 7
    status = root.file(keys[0]).stat()
    assert status.st_nlink == 7
    found = document(tmp_path)
    assert (found["chunks"], found["bytes"]) == (counted(7), counted(status.st_size))
    assert found["tenants"]["none"]["chunks"] == counted(7)


def test_the_bound_that_engines_keep_is_told(tmp_path: Path) -> None:
    Root(tmp_path).fill(10)
    root = Root(tmp_path)
    declare(root.directory, Terms(floor=1.0))
    Keeper(tmp_path, Bound(capacity=10**7), MonotonicClock(), print).look()
    found = document(tmp_path)
    assert found["bound"]["bytes"] == 10**7
    assert found["bound"]["used"] == 10 * RECORD_BYTES[0]
    assert 0 <= found["bound"]["age_s"] < 60
    assert found["foreign"] == counted(0)
    assert "bound that engines keep: 9.537 MiB" in run(tmp_path).stdout


def test_files_that_cannot_tell_whose_they_are(tmp_path: Path) -> None:
    root = Root(tmp_path)
    paths = root.fill(3)
    paths[1].write_bytes(b"damaged")
    paths[2].unlink()
    paths[2].symlink_to(paths[0])
    found = document(tmp_path)
    assert {name: one["chunks"]["estimate"] for name, one in found["tenants"].items()} == {
        "none": 1,
        "unreadable": 1,
    }
    assert found["foreign"] == counted(1)
    assert document(tmp_path, "--no-tenants")["tenants"] == {}


def test_an_empty_root(tmp_path: Path) -> None:
    found = document(tmp_path)
    assert (found["chunks"], found["namespaces"], found["exact"]) == (counted(0), [], True)
    assert "no namespaces" in run(tmp_path).stdout
