"""`kvstrata evict`: the oldest go until so much is left, beside engines that run and without any."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvstrata.chunks.key import make_key
from kvstrata.cli import evicting
from kvstrata.cli.main import app
from kvstrata.clock import MonotonicClock
from kvstrata.fileio.lease import lease
from kvstrata.tiers.keeper import Done, Keeper
from kvstrata.tiers.shares import HIGH, LOW, Bound
from kvstrata.tiers.spaces import Terms, declare
from kvstrata.tiers.sweep import LEASE_FILE, USAGE_FILE, read_usage
from kvstrata.tiers.tier import Loaded, Missing, Stored
from tests.unit.cli.roots import GEOMETRIES, RECORD_BYTES, Root, set_age, tree

HOUR = 3600
SIZE = RECORD_BYTES[0]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evict", *(str(one) for one in arguments)])


def evicted(*arguments: object) -> Any:
    result = run(*arguments, "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def fill(root: Path, chunks: int, step: float = 60.0, **facts: object) -> Root:
    """Chunks of which each is so many seconds older than the one before."""
    made = Root(root, **facts)
    for number, path in enumerate(made.fill(chunks)):
        set_age(path, HOUR + number * step)
    return made


def left(root: Root) -> list[int]:
    return [number for number, key in enumerate(root.keys) if root.file(key).exists()]


def test_the_oldest_go_until_so_much_is_left(tmp_path: Path) -> None:
    one = fill(tmp_path, 100)
    other = fill(tmp_path, 100, step=60.0, weights="xyz")
    found = evicted(tmp_path, "--to", 80 * SIZE)
    assert left(one) == list(range(len(left(one)))) and left(other) == list(range(len(left(other))))
    assert abs(len(left(one)) - len(left(other))) <= 1
    stayed = len(left(one)) + len(left(other))
    assert LOW * 80 - 1 <= stayed <= HIGH * 80
    assert found == {
        "path": str(tmp_path),
        "dry_run": False,
        "wanted": 80 * SIZE,
        "held_before": 200 * SIZE,
        "held": stayed * SIZE,
        "chunks": 200 - stayed,
        "bytes": (200 - stayed) * SIZE,
        "namespaces": {
            one.directory.name: 100 - len(left(one)),
            other.directory.name: 100 - len(left(other)),
        },
        "rounds": 1,
    }


def test_a_sample_suffices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, 600)
    real = evicting.sample
    monkeypatch.setattr(evicting, "sample", lambda *given: real(*given, enough=200))
    evicted(tmp_path, "--to", 200 * SIZE)
    stayed = left(root)
    assert 100 < len(stayed) <= 250
    youngest_gone = min(set(range(600)) - set(stayed))
    # Of so small a sample; with the usual one it is a hundredth.
    assert sum(number > youngest_gone for number in stayed) < 100


def test_nothing_goes_where_there_is_room(tmp_path: Path) -> None:
    root = fill(tmp_path, 5)
    result = run(tmp_path, "--to", "1GiB")
    assert result.exit_code == 0 and "nothing is to go" in result.stdout
    assert evicted(tmp_path, "--to", "1GiB")["chunks"] == 0
    assert left(root) == [0, 1, 2, 3, 4]


def test_it_is_said_that_more_goes_than_is_too_much(tmp_path: Path) -> None:
    fill(tmp_path, 100)
    result = run(tmp_path, "--to", 80 * SIZE, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert f"down to {LOW:.0%} of that" in " ".join(result.stdout.split())


def test_everything(tmp_path: Path) -> None:
    root = fill(tmp_path, 5)
    assert evicted(tmp_path, "--to", 0)["held"] == 0
    assert left(root) == []


def test_a_dry_run_tells_and_changes_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path, 100)
    before = tree(tmp_path)
    result = run(tmp_path, "--to", 50 * SIZE, "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert tree(tmp_path) == before
    assert found["held"] == 100 * SIZE
    would = round(found["bytes"] / SIZE)
    amount = found["namespaces"][root.directory.name]
    assert amount["low"] == amount["high"] == would * SIZE
    assert found["unused_for_s"] == pytest.approx(HOUR + 60 * (100 - would), abs=60)
    assert evicted(tmp_path, "--to", 50 * SIZE)["chunks"] == pytest.approx(would, abs=1)
    assert root.directory.name[:20] in run(tmp_path, "--to", SIZE, "--dry-run").stdout


def test_only_what_is_old_enough_goes(tmp_path: Path) -> None:
    root = fill(tmp_path, 100)
    result = run(tmp_path, "--to", 10 * SIZE, "--older-than", "2h", "--yes", "--json")
    assert result.exit_code == 1 and "more is left" in result.stderr
    assert json.loads(result.stdout)["held"] == len(left(root)) * SIZE
    assert left(root) == list(range(60))
    assert evicted(tmp_path, "--to", 50 * SIZE, "--older-than", "1h")["held"] <= 50 * SIZE


def test_only_of_what_was_named(tmp_path: Path) -> None:
    old = fill(tmp_path, 20, step=HOUR)
    named = fill(tmp_path, 20, model="org/large", weights="xyz")
    found = evicted(tmp_path, "--to", 10 * SIZE, "--namespace", named.directory.name)
    assert len(left(old)) == 20 and len(left(named)) <= 10
    assert found["held_before"] == 20 * SIZE
    assert evicted(tmp_path, "--to", 5 * SIZE, "--model", "large")["held"] <= 5 * SIZE
    assert len(left(old)) == 20


def test_what_engines_ask_for_counts(tmp_path: Path) -> None:
    """A floor: the young of one go before the old of another."""
    kept = fill(tmp_path, 20, step=HOUR)
    other = fill(tmp_path, 20, weights="xyz")
    declare(kept.directory, Terms(floor=15 * SIZE))
    found = json.loads(run(tmp_path, "--to", 20 * SIZE, "--dry-run", "--json").stdout)
    assert found["namespaces"][other.directory.name]["estimate"] >= 14 * SIZE
    evicted(tmp_path, "--to", 20 * SIZE)
    assert len(left(kept)) >= 15 and len(left(other)) <= 5


def test_a_floor_and_an_age(tmp_path: Path) -> None:
    kept = fill(tmp_path, 20, step=HOUR)
    other = fill(tmp_path, 20, step=HOUR, weights="xyz")
    declare(kept.directory, Terms(floor=15 * SIZE))
    result = run(tmp_path, "--to", 20 * SIZE, "--older-than", "12h", "--yes")
    assert result.exit_code == 1
    assert len(left(kept)) >= 15 and left(other) == list(range(11))


def test_chunks_that_share_a_file_go_together(tmp_path: Path) -> None:
    root = Root(tmp_path)
    size = GEOMETRIES[0].payload_bytes
    root.keys = [make_key(bytes([one * 37]) * 32, 0) for one in range(7)]
    given = [(key, memoryview(bytearray(size)), 0) for key in root.keys]
    assert root.tier.write_many(given) == [Stored(size)] * 7
    nbytes = root.file(root.keys[0]).stat().st_size
    set_age(root.file(root.keys[0]), 2 * HOUR)
    young = root.fill(3)
    assert evicted(tmp_path, "--to", 3 * SIZE + nbytes // 2)["bytes"] == pytest.approx(nbytes)
    assert left(root) == [7, 8, 9] and all(path.exists() for path in young)


def test_an_engine_that_runs_misses_what_went_and_goes_on(tmp_path: Path) -> None:
    root = fill(tmp_path, 4)
    into = memoryview(bytearray(GEOMETRIES[0].payload_bytes))
    assert isinstance(root.tier.read(root.keys[3], into), Loaded)
    set_age(root.file(root.keys[3]), 9 * HOUR)
    evicted(tmp_path, "--to", 3.2 * SIZE // 1)
    assert isinstance(root.tier.read(root.keys[3], into), Missing)
    assert isinstance(root.tier.read(root.keys[0], into), Loaded)


def test_engines_get_the_lease_now_and_then_and_their_bound_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 60)
    heard: list[Done] = []
    keeper = Keeper(tmp_path, Bound(capacity=200 * SIZE), MonotonicClock(), heard.append)
    assert keeper.look() is not None
    looks = []
    monkeypatch.setattr(evicting, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(time, "sleep", lambda _: looks.append(keeper.look()))
    found = evicted(tmp_path, "--to", 40 * SIZE)
    assert found["held"] <= 40 * SIZE
    assert len(looks) > 10 and None not in looks
    kept = read_usage(tmp_path)
    assert kept is not None and kept.bound == 200 * SIZE
    assert kept.used == pytest.approx(found["held"], abs=2 * SIZE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("shared", [False, True])
def test_engines_of_another_user_can_use_what_root_made(tmp_path: Path, shared: bool) -> None:
    fill(tmp_path, 10)
    Keeper(tmp_path, Bound(capacity=99 * SIZE), MonotonicClock(), print).look()
    (tmp_path / LEASE_FILE).unlink()
    os.chown(tmp_path, 4711, 4712)
    tmp_path.chmod(0o2770 if shared else 0o700)
    evicted(tmp_path, "--to", 5 * SIZE)
    for name in (LEASE_FILE, USAGE_FILE):
        status = (tmp_path / name).stat()
        assert (status.st_uid, status.st_gid) == (4711, 4712)
        assert status.st_mode & 0o777 == (0o660 if shared else 0o600)


@pytest.mark.parametrize("how", ["link", "hard link", "pipe"])
def test_what_was_put_in_a_files_place_is_given_to_nobody(tmp_path: Path, how: str) -> None:
    root, outside = tmp_path / "kv", tmp_path / "outside"
    root.mkdir()
    outside.touch(0o640)
    if how == "pipe":
        os.mkfifo(root / USAGE_FILE, 0o640)
    elif how == "link":
        (root / USAGE_FILE).symlink_to(outside)
    else:
        (root / USAGE_FILE).hardlink_to(outside)
    evicting._hand_over(root, USAGE_FILE)
    assert outside.stat().st_mode & 0o777 == 0o640
    assert (root / USAGE_FILE).stat().st_mode & 0o777 == 0o640


def test_no_engine_keeps_a_bound_so_none_is_written_down(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    evicted(tmp_path, "--to", 5 * SIZE)
    assert read_usage(tmp_path) is None


def test_another_that_evicts_is_waited_for_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path, 10)
    monkeypatch.setattr(evicting, "LEASE_SECONDS", 0.0)
    with lease(str(tmp_path / LEASE_FILE)) as got:
        assert got
        result = run(tmp_path, "--to", SIZE, "--yes")
    assert result.exit_code == 2 and "another process" in result.stderr
    assert len(left(root)) == 10


def test_nothing_goes_unasked(tmp_path: Path) -> None:
    root = fill(tmp_path, 10)
    result = run(tmp_path, "--to", SIZE)
    assert result.exit_code == 2 and "--yes" in result.stderr
    assert len(left(root)) == 10


@pytest.mark.parametrize("to", ["64k", "-1", "half", ""])
def test_a_size_that_is_none(tmp_path: Path, to: str) -> None:
    root = fill(tmp_path, 2)
    assert run(tmp_path, "--to", to, "--yes").exit_code == 2
    assert len(left(root)) == 2
