"""One place has one name, whoever asks first and from wherever."""

import errno
import multiprocessing
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from kvstrata.tiers import place as module
from kvstrata.tiers.place import PLACE_FILE, find_place


def ask(root: str, start: Any, names: Any) -> None:
    start.wait(30)
    names.put(find_place(Path(root), read_only=False))


def test_processes_that_race_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, names = context.Event(), context.Queue()
    children = [context.Process(target=ask, args=(str(tmp_path), start, names)) for _ in range(6)]
    for child in children:
        child.start()
    start.set()
    found = {names.get(timeout=30) for _ in children}
    for child in children:
        child.join()
    (name, own), *others = found
    assert own and not others and len(name) == 32
    assert [path.name for path in tmp_path.iterdir()] == [PLACE_FILE]


def test_two_places_have_two_names_and_keep_them(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        root.mkdir()
    first = [find_place(root, read_only=False) for root in roots]
    assert len(set(first)) == 2
    assert [find_place(root, read_only=True) for root in roots] == first
    roots[0].rename(tmp_path / "c")
    assert find_place(tmp_path / "c", read_only=False) == first[0]


def test_where_nothing_may_be_written_the_name_is_of_host_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, own = find_place(tmp_path, read_only=True)
    assert not own and name.startswith("host-")
    assert list(tmp_path.iterdir()) == []
    link = tmp_path.with_name("link")
    link.symlink_to(tmp_path)
    assert find_place(link, read_only=True) == (name, False)
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert find_place(tmp_path, read_only=True)[0] != name


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "pwritev", full)
    assert not find_place(tmp_path, read_only=False)[1]
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    name, own = find_place(tmp_path, read_only=False)
    assert own and find_place(tmp_path, read_only=False) == (name, True)
    assert [path.name for path in tmp_path.iterdir()] == [PLACE_FILE]


def test_half_a_line_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / PLACE_FILE
    path.write_bytes(b"0123")
    reached = threading.Event()

    def sleep(_: float) -> None:
        path.write_bytes(b"0" * 32 + b"\n")
        reached.set()

    monkeypatch.setattr(module.time, "sleep", sleep)
    assert find_place(tmp_path, read_only=True) == ("0" * 32, True)
    assert reached.is_set()


@pytest.mark.parametrize("content", [b"", b"0123\n", b"x" * 32 + b"\n", b"0" * 100])
def test_a_file_of_another_form_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    (tmp_path / PLACE_FILE).write_bytes(content)
    assert not find_place(tmp_path, read_only=False)[1]
