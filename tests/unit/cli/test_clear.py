"""`kvstrata clear`: what was chosen goes, all else stays, and nothing goes unasked."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kvstrata.chunks.key import make_key
from kvstrata.cli import choosing, console
from kvstrata.cli.console import format_age, parse_age
from kvstrata.cli.main import app
from kvstrata.errors import ConfigError
from kvstrata.tiers.catalog import RecordFile
from tests.unit.cli.roots import RECORD_BYTES, Root, set_age, tree

HOUR = 3600
DAY = 86400


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["clear", *(str(argument) for argument in arguments)])


def document(*arguments: str | Path) -> Any:
    result = run(*arguments, "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_of_an_empty_root_it_is_said_that_there_is_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "nothing to delete\n"


class Terminal:
    """Makes the command believe that a person sits there, who answers as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
        self.questions: list[str] = []
        self._answer = answer
        monkeypatch.setattr(console, "can_ask", lambda: True)
        monkeypatch.setattr(typer, "confirm", self.confirm)

    def confirm(self, text: str, *, abort: bool, err: bool) -> None:
        assert abort
        assert err
        self.questions.append(text)
        if not self._answer:
            raise typer.Abort


def test_everything(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(20)
    root.temporary(age=0)
    assert document(tmp_path) == {
        "path": str(tmp_path),
        "deleted": 21,
        "bytes": 20 * RECORD_BYTES[0] + len(b"half a record"),
        "namespaces": [
            {
                "directory": root.directory.name,
                "records": {"files": 20, "bytes": 20 * RECORD_BYTES[0]},
                "temporary": {"files": 1, "bytes": len(b"half a record")},
                "directory_removed": True,
            }
        ],
        "failed": 0,
        "failures": [],
        "dry_run": False,
    }
    assert tree(tmp_path) == set()


def test_an_engine_goes_on_after_everything_was_cleared(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(3)
    document(tmp_path)
    root.fill(2)
    assert [root.readable(key) for key in root.keys] == [False] * 3 + [True] * 2


def test_files_that_are_not_ours_stay_and_so_does_what_holds_them(tmp_path: Path) -> None:
    root = Root(tmp_path)
    beside = root.fill(5)[2]
    (tmp_path / "other").mkdir()
    (root.directory / "mine").mkdir()
    theirs = [
        tmp_path / "README",
        tmp_path / "other" / ".tmp-1-0123456789abcdef",
        root.directory / "notes.txt",
        root.directory / "mine" / "data.kv",
        beside.parent / "deadbeef.kv",
        beside.parent / f"{beside.name}.bak",
        beside.parent / ".tmpfile",
        beside.parent / ".tmp-notes",
        root.directory / "mine" / ".tmp-1-0123456789abcdef",
        root.directory / "mine" / beside.name,
        root.directory / beside.name,
    ]
    for path in theirs:
        path.write_bytes(b"not ours")
    found = document(tmp_path)
    assert found["deleted"] == 5
    assert found["namespaces"][0]["directory_removed"] is False
    assert all(path.read_bytes() == b"not ours" for path in theirs)
    assert (root.directory / "namespace.json").exists()  # else nobody could say whose this was
    assert not beside.exists()


def test_an_empty_directory_of_somebody_else_stays(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(1)
    (tmp_path / "empty").mkdir()
    (root.directory / "empty").mkdir()
    document(tmp_path)
    assert {"empty", f"{root.directory.name}/empty"} <= tree(tmp_path)


def test_an_empty_directory_that_only_looks_like_a_namespace_stays(tmp_path: Path) -> None:
    lookalike = tmp_path / f"photos-{'0123456789abcdef' * 2}"
    lookalike.mkdir()
    assert document(tmp_path)["deleted"] == 0
    assert lookalike.exists()


def test_a_link_to_elsewhere_is_not_followed(tmp_path: Path) -> None:
    elsewhere = Root(tmp_path / "elsewhere")
    elsewhere.fill(3)
    before = tree(elsewhere.path)
    root = Root(tmp_path / "root")
    root.fill(1)
    for name in ("ab", "cd"):
        (root.directory / name).mkdir(exist_ok=True)
    (root.directory / "ab" / "cd").symlink_to(elsewhere.file(elsewhere.keys[0]).parent)
    document(root.path)
    assert tree(elsewhere.path) == before


def test_by_namespace(tmp_path: Path) -> None:
    first, second = Root(tmp_path), Root(tmp_path, weights="xyz")
    first.fill(3)
    second.fill(4)
    prefix = second.namespace.fingerprint.hex()[:6]
    assert document(tmp_path, "--namespace", prefix)["deleted"] == 4
    assert all(first.readable(key) for key in first.keys)
    assert not second.directory.exists()
    assert document(tmp_path, "--namespace", first.directory.name)["deleted"] == 3


@pytest.mark.parametrize("prefix", ["other", "", "ffffffffffff"])
def test_a_namespace_that_is_not_there(tmp_path: Path, prefix: str) -> None:
    root = Root(tmp_path)
    root.fill(1)
    result = run(tmp_path, "--namespace", prefix, "--yes")
    assert result.exit_code == 2
    assert root.directory.name in result.stderr
    assert root.readable(root.keys[0])


def test_by_age(tmp_path: Path) -> None:
    root = Root(tmp_path)
    ages = [0, HOUR, 2 * DAY, 8 * DAY, 20_000 * DAY]
    for path, age in zip(root.fill(5), ages, strict=True):
        set_age(path, age)
    found = document(tmp_path, "--older-than", "7d")
    assert found["deleted"] == 2
    assert found["namespaces"][0]["directory_removed"] is False
    assert [root.readable(key) for key in root.keys] == [True, True, True, False, False]
    assert not root.file(root.keys[4]).parent.parent.exists()  # empty ones do not pile up
    assert document(tmp_path, "--older-than", "30m")["deleted"] == 2
    assert (root.directory / "namespace.json").exists()


def test_left_over_temporary_files(tmp_path: Path) -> None:
    root = Root(tmp_path)
    paths = root.fill(3)
    for path in paths:
        set_age(path, 30 * DAY)
    young, old = root.temporary(60), root.temporary(2 * HOUR, beside=paths[1])
    found = document(tmp_path, "--temporary")
    assert found["deleted"] == 1
    assert (young.exists(), old.exists()) == (True, False)
    assert all(root.readable(key) for key in root.keys)
    assert document(tmp_path, "--temporary", "--older-than", "30s")["deleted"] == 1
    assert not young.exists()


def test_a_left_over_of_the_description_goes_too(tmp_path: Path) -> None:
    root = Root(tmp_path)
    left = root.directory / ".tmp-4711-0123456789abcdef"
    left.write_bytes(b"{")
    document(tmp_path)
    assert not root.directory.exists()


def test_left_overs_beside_the_namespaces_go_too(tmp_path: Path) -> None:
    Root(tmp_path).fill(1)
    names = [".tmp-4711-0123456789abcdef", ".tmp-4712-0123456789abcdef", ".tmp-mine"]
    _, young, foreign = paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_bytes(b"0")
        set_age(path, 60 if path == young else 2 * HOUR)
    shown = run(tmp_path, "--temporary")
    assert shown.exit_code == 2 and "beside them" in shown.stdout
    assert document(tmp_path, "--temporary", "--namespace", "tiny")["deleted"] == 0
    assert document(tmp_path, "--temporary")["deleted"] == 1
    assert [path.exists() for path in paths] == [False, True, True]
    assert document(tmp_path)["deleted"] == 2
    assert not young.exists() and foreign.exists()


def test_without_a_terminal_nothing_goes_unasked(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(2)
    before = tree(tmp_path)
    result = run(tmp_path)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("kvstrata: there is no terminal")
    assert "--yes" in result.stderr
    assert root.directory.name in result.stdout  # it shows what would go
    as_json = run(tmp_path, "--json")
    assert (as_json.exit_code, as_json.stdout) == (2, "")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("answer", [True, False])
def test_it_asks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    root = Root(tmp_path)
    root.fill(12)
    terminal = Terminal(monkeypatch, answer)
    with pytest.raises(SystemExit) as ended:
        app(["clear", str(tmp_path)])
    assert ended.value.code == (0 if answer else 1)
    assert terminal.questions == ["Delete these 12 files?"]
    assert root.directory.exists() != answer


def test_yes_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Root(tmp_path).fill(1)
    terminal = Terminal(monkeypatch, answer=False)
    with pytest.raises(SystemExit) as ended:
        app(["clear", str(tmp_path), "-y"])
    assert ended.value.code == 0
    assert terminal.questions == []
    assert tree(tmp_path) == set()


def test_nothing_to_delete_asks_nothing(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(2)
    result = run(tmp_path, "--older-than", "1d")
    assert result.exit_code == 0
    assert "0 files deleted" in result.stdout
    assert all(root.readable(key) for key in root.keys)


def test_what_cannot_be_deleted_is_said_and_ends_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(tmp_path)
    victim = root.fill(30)[3]
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == victim:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    result = run(tmp_path, "--yes", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["deleted"], found["failed"]) == (29, 1)
    assert str(victim) in found["failures"][0]
    assert str(victim) in result.stderr
    assert victim.exists()


# --- ages and the choice -------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from("smhd"))
def test_an_age_is_a_number_of_units(count: int, unit: str) -> None:
    assert parse_age(f"{count}{unit}") == count * {"s": 1, "m": 60, "h": HOUR, "d": DAY}[unit]


@pytest.mark.parametrize("text", ["", "7", "d", "7w", "-1d", "7 days", "1e3s", "nan d", "1d12h"])
def test_no_age(text: str) -> None:
    with pytest.raises(ConfigError, match='"7d"'):
        parse_age(text)


def test_a_wrong_age_deletes_nothing(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(1)
    result = run(tmp_path, "--older-than", "soon", "--yes")
    assert result.exit_code == 2
    assert root.readable(root.keys[0])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 m"),
        (5400, "1.5 h"),
        (20_000 * DAY, "20000 d"),
    ],
)
def test_an_age_for_people(seconds: float | None, text: str) -> None:
    assert format_age(seconds) == text


@given(
    st.booleans(),
    st.floats(0, 10**9),
    st.none() | st.floats(0, 10**9),
    st.booleans(),
)
def test_what_is_chosen(
    is_temporary: bool, age: float, older_than: float | None, temporary: bool
) -> None:
    now = 2.0e9
    file = RecordFile(
        path=Path("x"), key=make_key(bytes(32), 0), size=1, mtime=now - age, temporary=is_temporary
    )
    chosen = choosing.select(older_than, temporary, now).covers(file)
    limit = older_than if older_than is not None else (HOUR if temporary else 0)
    if abs(age - limit) > 1:  # sums of floats this large are exact to a microsecond
        assert chosen == ((is_temporary or not temporary) and age >= limit)
