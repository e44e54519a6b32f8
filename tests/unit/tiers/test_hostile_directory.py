"""A directory with what kvstrata never writes: misses, no wrong bytes, and nothing else is touched.

Each case takes the stored files of a small root, spoils one thing, and does with it all that engines and
commands do. Around the root lies what must stay as it is.
"""

import errno
import os
import random
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvstrata.chunks import record, segment
from kvstrata.chunks.checksum import digest
from kvstrata.chunks.key import relative_path
from kvstrata.cli.main import app
from kvstrata.clock import MonotonicClock
from kvstrata.errors import ConfigError
from kvstrata.fileio import transfer
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import Keeper
from kvstrata.tiers.shares import Bound
from kvstrata.tiers.spaces import TERMS_FILE
from kvstrata.tiers.sweep import LEASE_FILE, USAGE_FILE
from kvstrata.tiers.tier import Bad, Loaded, Missing, Stored
from lab import golden

pytestmark = pytest.mark.timeout(60)

VICTIM = golden.RECORDS[0]
OTHERS = [chunk for chunk in golden.CHUNKS if chunk is not VICTIM]
HUGE = 1 << 40
SPARSE = 1 << 30

Spoil = Callable[["Place", Path], None]


class Place:
    """A root, a tier on it, and what lies around it.

    Attributes:
        root: its directory.
        outside: a directory beside it, with a whole copy of a root in it.
        tier: prepared.
        path: of the chunk that is spoiled.
    """

    def __init__(self, directory: Path) -> None:
        self.root = golden.copy_of("plain", directory)
        self.outside = directory / "outside"
        self.outside.mkdir()
        golden.copy_of("plain", self.outside)
        self.tier = self.fresh()
        self.path = self.tier.directory / relative_path(VICTIM.key)
        self.before = self._around()

    def fresh(self, *, read_only: bool = False) -> FilesystemTier:
        return golden.tier_of("plain", self.root, read_only=read_only)

    def copy(self, path: Path) -> Path:
        """What lies outside in place of something of the root."""
        return self.outside / "plain" / path.relative_to(self.root)

    def _around(self) -> dict[str, tuple[int, float, bytes]]:
        found = {}
        for path in sorted(self.outside.rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            changed = 0.0 if path.is_dir() else status.st_mtime
            found[str(path)] = status.st_mode, changed, content
        return found

    def check_around(self) -> None:
        assert self._around() == self.before


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.check_around()


def read(tier: FilesystemTier, chunks: list[golden.Chunk]) -> list[Any]:
    """Read whatever is stored of some chunks; what is loaded must be right."""
    buffers = [bytearray(len(chunk.payload)) for chunk in chunks]
    wanted = [
        (chunk.key, memoryview(buffer), chunk.first_block)
        for chunk, buffer in zip(chunks, buffers, strict=True)
    ]
    outcomes = tier.read_many(wanted)
    for chunk, buffer, outcome in zip(chunks, buffers, outcomes, strict=True):
        assert isinstance(outcome, Loaded | Bad | Missing)
        if isinstance(outcome, Loaded):
            low = chunk.first_block * chunk.geometry.block_bytes
            assert buffer[low:] == chunk.payload[low:]
    return outcomes


def write(tier: FilesystemTier, chunks: list[golden.Chunk]) -> list[Any]:
    return tier.write_many([(one.key, memoryview(one.payload), one.first_block) for one in chunks])


def look(root: Path, capacity: int = 1) -> None:
    """What an engine's keeper does, until nothing is left to do; refusals of the system are allowed."""
    keeper = Keeper(root, Bound(capacity=capacity), MonotonicClock(), lambda _: None, 0)
    for _ in range(4):
        try:
            done = keeper.look()
        except OSError:
            return
        if done is None or not done.removed:
            return


def command(*arguments: str | Path) -> Any:
    """A command on the root: it ends with a status of its own, not with an exception of ours."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    unexpected = result.exception is not None and not isinstance(result.exception, SystemExit)
    assert not unexpected, result.exception
    assert result.exit_code in (0, 1, 2), result.output
    return result


def commands(root: Path) -> None:
    for arguments in (["inspect"], ["usage"], ["usage", "--exact"], ["verify"]):
        command(*arguments, root, "--json")
    command("evict", root, "--to", "1GiB", "--dry-run")
    command("clear", root, "--dry-run")


# What can stand under a chunk's name.


def link_to_record(place: Place, path: Path) -> None:
    path.symlink_to(place.copy(path))


def link_to_directory(place: Place, path: Path) -> None:
    path.symlink_to(place.outside)


def dangling_link(place: Place, path: Path) -> None:
    path.symlink_to(place.outside / "nothing")


def loop(_: Place, path: Path) -> None:
    path.symlink_to(path)


def fifo(_: Place, path: Path) -> None:
    os.mkfifo(path)


def listening(_: Place, path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    try:  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def device(_: Place, path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # zeros without end
        path.open("rb").close()
    except OSError as error:
        pytest.skip(f"no devices here: {error}")


def directory(_: Place, path: Path) -> None:
    path.mkdir()


def directory_with_files(_: Place, path: Path) -> None:
    path.mkdir()
    (path / path.name).write_bytes(b"a file in it")


def sparse(_: Place, path: Path) -> None:
    path.touch()
    os.truncate(path, HUGE)


def unreadable(place: Place, path: Path) -> None:
    path.write_bytes(place.copy(path).read_bytes())
    path.chmod(0)


def other_chunk(place: Place, path: Path) -> None:
    path.hardlink_to(place.tier.directory / relative_path(golden.RECORDS[1].key))


def segment_of_others(place: Place, path: Path) -> None:
    path.hardlink_to(place.tier.directory / relative_path(golden.SEGMENTS[0][0].key))


def lying(offset: int, code: str, *values: int, size: int = HUGE) -> Spoil:
    """A record whose header says other numbers, with the checksum that belongs to them."""

    def spoil(place: Place, path: Path) -> None:
        content = bytearray(place.copy(path).read_bytes())
        struct.pack_into(code, content, offset, *values)
        _seal_and_write(content, path, size)

    return spoil


def lying_segment(offset: int, code: str, *values: int, size: int = HUGE) -> Spoil:
    """A table that names the chunk first, which is whole, and is changed in the same way."""

    def spoil(place: Place, path: Path) -> None:
        other = place.tier.directory / relative_path(golden.SEGMENTS[0][0].key)
        content = bytearray(other.read_bytes())
        content[80:96] = struct.pack("<HHIQ", len(VICTIM.key), 0, 0, 4096)
        content[96:152] = VICTIM.key.ljust(56, b"\0")
        size_of_block = VICTIM.geometry.block_bytes
        sums = [digest(VICTIM.payload[at : at + size_of_block]) for at in (0, size_of_block)]
        content[320:352] = b"".join(sums)
        content[4096 : 4096 + len(VICTIM.payload)] = VICTIM.payload
        struct.pack_into(code, content, offset, *values)
        _seal_and_write(content, path, size)

    return spoil


def _seal_and_write(content: bytearray, path: Path, size: int) -> None:
    length = int.from_bytes(content[12:16], "little")
    # Its checksum covers zeros as far as the header says that it goes.
    head = bytearray(content[:length].ljust(min(length, 1 << 26), b"\0"))
    head[64:80] = bytes(16)
    content[64:80] = digest(head)
    path.write_bytes(content)
    os.truncate(path, size)


LONGEST = record.header_bytes(record.MAX_BLOCKS, sealed=True)
THINGS: dict[str, Spoil] = {
    "link to a record": link_to_record,
    "link to a directory": link_to_directory,
    "dangling link": dangling_link,
    "link to itself": loop,
    "fifo": fifo,
    "socket": listening,
    "device": device,
    "directory": directory,
    "directory with files": directory_with_files,
    "sparse": sparse,
    "unreadable": unreadable,
    "another chunk's record": other_chunk,
    "a segment of other chunks": segment_of_others,
    "blocks of a tebibyte": lying(48, "<Q", HUGE, size=4 * HUGE),
    "blocks of all bytes": lying(48, "<Q", 2**64 - 1),
    "blocks without bytes": lying(48, "<Q", 0),
    "2**32 blocks": lying(36, "<I", 2**32 - 1),
    "a header of 16 MiB": lying(12, "<I", LONGEST),
    "a header of 4 GiB": lying(12, "<I", 2**32 - 4096),
    "a header without bytes": lying(12, "<I", 0),
    "no blocks": lying(40, "<I", 2),
    "a long key": lying(32, "<H", 65535),
    "a short key": lying(32, "<H", 2),
    "no tokens": lying(44, "<I", 0),
    "a later version": lying(8, "<I", 99),
    "a table of 32 MiB": lying_segment(12, "<I", 32 << 20),
    "4096 chunks": lying_segment(40, "<I", 4096),
    "chunks behind the end": lying_segment(88, "<Q", HUGE * 2),
    "chunks behind all files": lying_segment(88, "<Q", 2**64 - 4096),
    "chunks in the table": lying_segment(88, "<Q", 0),
    "a chunk with a key of no bytes": lying_segment(160, "<H", 0),
    "a chunk with a key of 2 bytes": lying_segment(160, "<H", 2),
}
USABLE = {"unreadable", "a chunk with a key of no bytes", "a chunk with a key of 2 bytes"}
"""Root may read everything; what is wrong with another chunk is not with this."""


@pytest.mark.parametrize("kind", THINGS)
def test_what_stands_under_a_chunks_name(place: Place, kind: str) -> None:
    place.path.unlink()
    THINGS[kind](place, place.path)
    for tier in (place.fresh(read_only=True), place.fresh()):
        tier.prepare()
        tier.probe([chunk.key for chunk in golden.CHUNKS])
        victim, *others = read(tier, [VICTIM, *OTHERS])
        assert kind in USABLE or not isinstance(victim, Loaded)
        assert all(isinstance(outcome, Loaded) for outcome in others)
    assert set(place.tier.scan()) >= {chunk.key for chunk in OTHERS}
    commands(place.root)
    written, *kept = write(place.tier, [VICTIM, *OTHERS])
    if isinstance(written, Stored):
        assert all(isinstance(outcome, Loaded) for outcome in read(place.tier, [VICTIM]))
        assert place.path.is_file() and not place.path.is_symlink()
    else:
        assert kind in USABLE or place.path.is_dir()
    assert len(kept) == len(OTHERS)
    place.tier.remove(VICTIM.key)
    look(place.root)
    command("verify", place.root, "--remove")
    command("clear", place.root, "--yes")


@pytest.mark.parametrize(
    "kind", ["link to a record", "fifo", "directory", "chunks behind all files"]
)
def test_the_same_as_it_is_evicted_and_cleared(place: Place, kind: str) -> None:
    place.path.unlink()
    THINGS[kind](place, place.path)
    look(place.root)
    assert not any(place.tier.probe([chunk.key for chunk in OTHERS])[1:3])
    command("evict", place.root, "--to", "0")
    command("clear", place.root, "--yes")
    assert isinstance(read(place.tier, [VICTIM])[0], Bad | Missing)


# What can stand for the directories.


@pytest.mark.parametrize("level", ["namespace", "first", "second"])
def test_directories_that_lead_elsewhere(place: Place, level: str) -> None:
    within = {
        "namespace": place.tier.directory,
        "first": place.path.parent.parent,
        "second": place.path.parent,
    }[level]
    aside = place.root / "aside"
    within.rename(aside)
    within.symlink_to(place.copy(within))
    tier = place.fresh()
    try:
        tier.prepare()
    except ConfigError:
        assert level == "namespace"
    read(tier, list(golden.CHUNKS))
    list(tier.scan())
    commands(place.root)
    for chunk in golden.CHUNKS:
        tier.remove(chunk.key)
    place.check_around()
    assert not any(isinstance(one, Stored) for one in write(tier, [VICTIM]))
    look(place.root)
    command("verify", place.root, "--remove")
    command("clear", place.root, "--yes")


def test_a_directory_that_leads_to_itself(place: Place) -> None:
    (place.tier.directory / "00").mkdir(exist_ok=True)
    (place.tier.directory / "00" / "00").symlink_to(place.tier.directory)
    (place.tier.directory / "01").symlink_to(place.root)
    commands(place.root)
    look(place.root)
    assert len(list(place.tier.scan())) <= len(golden.CHUNKS)


# What can stand in place of the small files.


def nested(_: Place, path: Path) -> None:
    path.write_bytes(b'{"covers":' + b"[" * 200_000)


def nested_objects(_: Place, path: Path) -> None:
    path.write_bytes(b'{"covers":' + b'{"a":' * 900 + b"1" + b"}" * 901)


def huge(_: Place, path: Path) -> None:
    path.touch()
    os.truncate(path, SPARSE)


def not_text(_: Place, path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def endless_number(_: Place, path: Path) -> None:
    path.write_bytes(b'{"used":' + b"9" * 2000 + b"}")


CONTENTS: dict[str, Spoil] = {
    "fifo": fifo,
    "socket": listening,
    "directory": directory,
    "link to a file": link_to_record,
    "link to itself": loop,
    "device": device,
    "huge": huge,
    "nested": nested,
    "nested objects": nested_objects,
    "not text": not_text,
    "endless number": endless_number,
}
SMALL = ("namespace.json", TERMS_FILE, USAGE_FILE, LEASE_FILE, ".kvstrata-place")


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("name", SMALL)
def test_small_files(place: Place, name: str, kind: str) -> None:
    inside = name in ("namespace.json", TERMS_FILE)
    path = (place.tier.directory if inside else place.root) / name
    path.unlink(missing_ok=True)
    if kind == "link to a file" and name == LEASE_FILE:
        place.copy(path).touch()
        place.before = place._around()
    CONTENTS[kind](place, path)
    lies = (name, kind) == ("namespace.json", "nested objects")
    for tier in (place.fresh(read_only=True), place.fresh()):
        with pytest.raises(ConfigError, match="another engine") if lies else nullcontext():
            tier.prepare()
        tier.introduce()
        assert all(isinstance(outcome, Loaded) for outcome in read(tier, list(golden.CHUNKS)))
    look(place.root, capacity=1 << 30)
    command("inspect", place.root)
    command("usage", place.root)
    look(place.root)
    command("clear", place.root, "--yes")


# Names and numbers of them.


def test_odd_names_and_many_foreign_files(place: Place) -> None:
    base = place.path.parent
    for name in (b"\xff\xfe.kv", b"a\nb.g0.kv", b" .g0.kv", b"..kv", b"'; rm -rf $HOME.kv", b"-rf"):
        (base / os.fsdecode(name)).write_bytes(b"foreign")
    (place.root / os.fsdecode(b"\xff-" + b"0" * 32)).mkdir()
    (base / (VICTIM.key.hex()[:31].upper() + ".g0.kv")).write_bytes(b"foreign")
    for number in range(5_000):
        os.close(os.open(base / f"foreign-{number}", os.O_CREAT | os.O_WRONLY))
    foreign = len(list(base.iterdir()))
    commands(place.root)
    assert all(isinstance(outcome, Loaded) for outcome in read(place.tier, list(golden.CHUNKS)))
    look(place.root)
    command("clear", place.root, "--yes")
    assert len(list(base.iterdir())) == foreign - 1, "foreign files stay"


# What changes while it is read.


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("chunk", [golden.RECORDS[0], golden.SEGMENTS[0][1]])
def test_a_file_that_shrinks_while_it_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch, chunk: golden.Chunk, calls: int
) -> None:
    path = place.tier.directory / relative_path(chunk.key)
    left = [calls]
    real = os.preadv

    def preadv(*arguments: Any) -> int:
        got = real(*arguments)
        left[0] -= 1
        if left[0] == 0:
            os.truncate(path, 4096 + random.Random(calls).randrange(40))
        return got

    monkeypatch.setattr(transfer.os, "preadv", preadv)
    read(place.tier, [chunk])
    monkeypatch.undo()
    assert isinstance(read(place.tier, [chunk])[0], Bad | Missing)


def test_an_error_of_the_medium_in_a_segment_is_no_other_chunks(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preadv(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        if offset:
            raise OSError(errno.EIO, "the medium")
        return real(fd, buffers, offset, *flags)

    real = os.preadv
    monkeypatch.setattr(transfer.os, "preadv", preadv)
    assert all(isinstance(one, Bad) for one in read(place.tier, list(golden.SEGMENTS[0])))
    monkeypatch.undo()
    assert all(isinstance(one, Loaded) for one in read(place.tier, list(golden.SEGMENTS[0])))


def test_a_table_is_no_larger_than_its_bound() -> None:
    # What the sizes above rest on: nothing that a file says makes a reader ask for more memory.
    for declared in (2**32 - 4096, (1 << 26)):
        data = bytearray(4096)
        struct.pack_into("<8sII", data, 0, record.MAGIC, segment.SEGMENT_VERSION, declared)
        with pytest.raises(Exception, match="impossible"):
            segment.declared_table_bytes(data)
