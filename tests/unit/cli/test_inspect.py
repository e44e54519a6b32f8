"""`kvstrata inspect` on roots that a real tier filled."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvstrata.cli.main import app
from tests.unit.cli.roots import RECORD_BYTES, Root, set_age

DAY = 86400


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(path: Path) -> Any:
    result = run("inspect", path, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_the_document_of_one_namespace(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(5, group=0)
    root.fill(2, group=1)
    root.temporary(age=10)
    found = document(tmp_path)
    nbytes = 5 * RECORD_BYTES[0] + 2 * RECORD_BYTES[1]
    (namespace,) = found["namespaces"]
    assert 0 <= namespace.pop("newest_age_s") <= namespace.pop("oldest_age_s") < DAY
    assert namespace == {
        "directory": root.directory.name,
        "model": "org/tiny",
        "fingerprint": root.namespace.fingerprint.hex(),
        "covers": json.loads(root.namespace.to_json())["covers"],
        "records": 7,
        "bytes": nbytes,
        "groups": {
            "0": {"files": 5, "bytes": 5 * RECORD_BYTES[0]},
            "1": {"files": 2, "bytes": 2 * RECORD_BYTES[1]},
        },
        "temporary": {"files": 1, "bytes": len(b"half a record")},
    }
    assert (found["path"], found["records"], found["bytes"]) == (str(tmp_path), 7, nbytes)


def test_several_namespaces_are_kept_apart_and_added_up(tmp_path: Path) -> None:
    first, second = Root(tmp_path), Root(tmp_path, model="org/tiny", weights="xyz")
    first.fill(3)
    second.fill(4)
    found = document(tmp_path)
    counts = {one["directory"]: one["records"] for one in found["namespaces"]}
    assert counts == {first.directory.name: 3, second.directory.name: 4}
    assert found["records"] == 7


def test_ages_span_the_oldest_and_the_newest(tmp_path: Path) -> None:
    root = Root(tmp_path)
    for path, days in zip(root.fill(3), (40_000 / 24, 2, 20_000), strict=True):
        set_age(path, days * DAY)
    (namespace,) = document(tmp_path)["namespaces"]
    assert namespace["newest_age_s"] == pytest.approx(2 * DAY, abs=120)
    assert namespace["oldest_age_s"] == pytest.approx(20_000 * DAY, abs=120)
    assert "last used    2 d to 20000 d ago" in run("inspect", tmp_path).stdout


def test_a_file_from_the_future_has_no_age(tmp_path: Path) -> None:
    root = Root(tmp_path)
    set_age(root.fill(1)[0], -DAY)
    assert document(tmp_path)["namespaces"][0]["oldest_age_s"] == 0


def test_files_that_are_not_ours_do_not_count(tmp_path: Path) -> None:
    root = Root(tmp_path)
    beside = root.fill(1)[0]
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.kv").write_bytes(b"x")
    (root.directory / "notes.txt").write_text("notes")
    (beside.parent / "deadbeef.kv").write_bytes(b"x")
    (beside.parent / f"{beside.stem}.kv.bak").write_bytes(b"x")
    found = document(tmp_path)
    assert len(found["namespaces"]) == 1
    assert found["records"] == 1
    assert found["namespaces"][0]["temporary"]["files"] == 0


def test_a_namespace_without_records(tmp_path: Path) -> None:
    Root(tmp_path)
    (namespace,) = document(tmp_path)["namespaces"]
    assert (namespace["records"], namespace["groups"]) == (0, {})
    assert (namespace["oldest_age_s"], namespace["newest_age_s"]) == (None, None)


def test_an_empty_root(tmp_path: Path) -> None:
    expected = {"path": str(tmp_path), "records": 0, "bytes": 0, "namespaces": []}
    assert document(tmp_path) == expected
    assert "no namespaces" in run("inspect", tmp_path).stdout


@pytest.mark.parametrize("damage", ["missing", "not JSON", "not ours"])
def test_a_damaged_description(tmp_path: Path, damage: str) -> None:
    root = Root(tmp_path)
    root.fill(2)
    description = root.directory / "namespace.json"
    if damage == "missing":
        description.unlink()
    else:
        description.write_text("{" if damage == "not JSON" else "[1, 2]")
    (namespace,) = document(tmp_path)["namespaces"]
    assert namespace["covers"] is None
    assert namespace["records"] == 2
    assert namespace["fingerprint"] == root.namespace.fingerprint.hex()
    result = run("inspect", tmp_path)
    assert result.exit_code == 0
    assert "missing or damaged" in result.stdout


def test_the_text_names_model_groups_and_totals(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(1200)
    root.fill(2, group=1)
    text = run("inspect", tmp_path).stdout
    for part in (root.directory.name, "org/tiny", "weights", "group 0", "group 1", "1,202 records"):
        assert part in text


@pytest.mark.parametrize("command", ["inspect", "verify", "clear"])
def test_a_path_that_is_no_root(tmp_path: Path, command: str) -> None:
    namespace = Root(tmp_path / "root").directory
    (tmp_path / "file").write_text("x")
    for path, why in [
        (tmp_path / "absent", "no such directory"),
        (tmp_path / "file", "not a directory"),
        (namespace, "the directory above it"),
    ]:
        result = run(command, path, "--json")
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("kvstrata: ")
        assert why in result.stderr
        assert result.stderr.count("\n") == 1


def test_no_command_shows_the_commands() -> None:
    result = run()
    assert all(name in result.output for name in ("inspect", "verify", "clear", "options"))


def test_version() -> None:
    from kvstrata import __version__

    assert run("--version").stdout.strip() == __version__
