"""`kvstrata verify`: finds each kind of damage, and nothing where there is none."""

import json
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kvstrata.cli import verification
from kvstrata.cli.main import app
from kvstrata.tiers.catalog import RecordFile, check_record, iter_records
from tests.unit.cli.roots import RECORD_BYTES, Root


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["verify", *(str(argument) for argument in arguments)])


def document(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code in (0, 1), result.stderr
    found = json.loads(result.stdout)
    assert found["clean"] == (result.exit_code == 0)
    return found


def flip(offset: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[offset] ^= 0x10
        path.write_bytes(data)

    return damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" * 1024)


def misplace(path: Path) -> None:
    """Put a good record under another chunk's name."""
    name = path.name
    other = ("0" if name[10] != "0" else "1").join([name[:10], name[11:]])
    path.rename(path.parent / other)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "payload": (flip(4096 + 1500), "checksum"),
    "last byte": (flip(-1), "checksum"),
    "header": (flip(200), "header"),
    "truncated": (truncate, "truncated"),
    "empty": (empty, "truncated"),
    "foreign": (foreign, "foreign"),
    "misplaced": (misplace, "key"),
}


def test_a_clean_root(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(30)
    root.fill(4, group=1)
    assert document(tmp_path) == {
        "path": str(tmp_path),
        "clean": True,
        "records": 34,
        "bytes": 30 * RECORD_BYTES[0] + 4 * RECORD_BYTES[1],
        "bad": 0,
        "removed": 0,
        "reasons": {},
        "gone": 0,
        "temporary": 0,
        "sealed_unchecked": 0,
        "bad_files": [],
    }
    result = run(tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "34 records" in result.stdout
    assert "all good" in result.stdout


def test_an_empty_root_is_clean(tmp_path: Path) -> None:
    assert document(tmp_path)["records"] == 0


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("remove", [False, True])
def test_one_damaged_record_among_good_ones(tmp_path: Path, kind: str, remove: bool) -> None:
    root = Root(tmp_path)
    victim = root.fill(12)[5]
    damage, reason = DAMAGES[kind]
    damage(victim)
    before = {file.path for file in iter_records(root.directory)}
    found = document(tmp_path, *(["--remove"] if remove else []))
    after = {file.path for file in iter_records(root.directory)}
    assert (found["records"], found["bad"], found["reasons"]) == (12, 1, {reason: 1})
    (bad,) = found["bad_files"]
    assert (bad["reason"], bad["removed"]) == (reason, remove)
    assert before - after == ({Path(bad["path"])} if remove else set())
    assert (kind == "misplaced") != (bad["path"] == str(victim))
    if remove:
        assert found["removed"] == 1
        assert document(tmp_path)["clean"]
    assert sum(root.readable(key) for key in root.keys) == 11


@settings(max_examples=60)
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    root = Root(tmp_path_factory.mktemp("root"))
    victim = root.fill(2)[data.draw(st.integers(0, 1))]
    content = bytearray(victim.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(content)
    found = document(root.path)
    assert [bad["path"] for bad in found["bad_files"]] == [str(victim)]


def older_version(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] = 0
    path.write_bytes(data)


def test_a_record_of_another_version_is_bad_but_never_removed(tmp_path: Path) -> None:
    root = Root(tmp_path)
    victim = root.fill(1)[0]
    older_version(victim)
    found = document(tmp_path, "--remove")
    assert (found["reasons"], found["removed"]) == ({"version": 1}, 0)
    assert victim.exists()


def test_a_record_of_another_namespace_is_bad_but_never_removed(tmp_path: Path) -> None:
    root, other = Root(tmp_path), Root(tmp_path, weights="xyz")
    source = root.fill(1)[0]
    target = other.directory / source.relative_to(root.directory)
    target.parent.mkdir(parents=True)
    target.write_bytes(source.read_bytes())
    found = document(tmp_path, "--remove")
    assert (found["reasons"], found["records"]) == ({"namespace": 1}, 2)
    assert target.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_record_that_may_not_be_read(tmp_path: Path) -> None:
    root = Root(tmp_path)
    victim = root.fill(2)[0]
    victim.chmod(0)
    found = document(tmp_path, "--remove")
    assert found["reasons"] == {"permission": 1}
    assert victim.exists()


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (PermissionError(13, "Permission denied"), {"permission": 1}),
        (OSError(5, "Input/output error"), {"io": 1}),
        (FileNotFoundError(2, "No such file or directory"), {}),
    ],
)
def test_what_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, counted: dict[str, int]
) -> None:
    root = Root(tmp_path)
    victim = root.fill(3)[1]

    def refuse(path: Path, *, deep: bool, keyring: None) -> Any:
        if path == victim:
            raise error
        return check_record(path, deep=deep)

    monkeypatch.setattr(verification, "check_record", refuse)
    found = document(tmp_path, "--remove")
    assert found["reasons"] == counted
    assert found["gone"] == (0 if counted else 1)
    assert found["records"] == (3 if counted else 2)
    assert victim.exists()


def test_a_record_that_is_replaced_while_it_is_read_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(tmp_path)
    victim = root.fill(1)[0]
    good = victim.read_bytes()
    truncate(victim)

    def check_and_replace(path: Path, *, deep: bool, keyring: None) -> Any:
        try:
            return check_record(path, deep=deep)
        finally:
            new = path.with_suffix(".new")
            new.write_bytes(good)
            new.rename(path)

    monkeypatch.setattr(verification, "check_record", check_and_replace)
    found = document(tmp_path, "--remove")
    assert (found["bad"], found["removed"]) == (1, 0)
    assert root.readable(root.keys[0])


def test_foreign_and_temporary_files_are_not_read_and_stay(tmp_path: Path) -> None:
    root = Root(tmp_path)
    beside = root.fill(2)[0]
    ours = root.temporary(age=10**6)
    theirs = [tmp_path / "notes.kv", root.directory / "notes.kv", beside.parent / "notes.kv"]
    for path in theirs:
        path.write_bytes(b"not ours")
    found = document(tmp_path, "--remove")
    assert (found["clean"], found["records"], found["temporary"]) == (True, 2, 1)
    assert all(path.exists() for path in [ours, *theirs])


def test_a_copy_that_somebody_keeps_is_reported_and_stays(tmp_path: Path) -> None:
    root = Root(tmp_path)
    source = root.fill(1)[0]
    copy = root.directory / "kept" / source.name
    copy.parent.mkdir()
    copy.write_bytes(source.read_bytes())
    found = document(tmp_path, "--remove")
    assert (found["reasons"], found["removed"]) == ({"key": 1}, 0)
    assert copy.exists()


def test_only_the_first_bad_records_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    root = Root(tmp_path)
    for path in root.fill(40)[::2]:
        empty(path)
    found = document(tmp_path, "--list", "3", "--threads", "3")
    assert (found["bad"], len(found["bad_files"])) == (20, 3)
    text = run(tmp_path, "--list", "3").stdout
    assert "20 bad, 0 of them removed" in text
    assert "and 17 more" in text
    assert sum(line.startswith(root.directory.name) for line in text.splitlines()) == 3


def test_several_reasons_are_told_apart(tmp_path: Path) -> None:
    root = Root(tmp_path)
    for path, (damage, _) in zip(root.fill(len(DAMAGES)), DAMAGES.values(), strict=True):
        damage(path)
    expected = Counter(reason for _, reason in DAMAGES.values())
    assert document(tmp_path)["reasons"] == dict(expected)


def test_reading_changes_nothing(tmp_path: Path) -> None:
    root = Root(tmp_path)
    paths = root.fill(3)
    before = [(path.stat().st_mtime_ns, stat.S_IMODE(path.stat().st_mode)) for path in paths]
    run(tmp_path)
    after = [(path.stat().st_mtime_ns, stat.S_IMODE(path.stat().st_mode)) for path in paths]
    assert before == after


def test_gone_before_the_first_look(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(1)
    (file,) = iter_records(root.directory)
    assert isinstance(file, RecordFile)
    file.path.unlink()
    assert verification.examine(root.directory, file, remove=True) == verification.Gone()
