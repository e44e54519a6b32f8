"""What is fuzzed, and what must hold whatever the input is.

A target is a function of bytes that returns, or raises: an AssertionError where the package said what is not
so, anything else where it raised what it must not. Inputs of the decoders of files are a known file and edits
of it, or the bytes themselves; a bit of the first byte asks that the file's own checksum is made right again,
since none would get past it by chance.
"""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvstrata.chunks import record, segment
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.errors import RecordError
from lab import golden
from lab.fuzz import documented
from lab.fuzz.documents import documents, snapshots
from lab.fuzz.files import files
from lab.fuzz.heads import KEYRING, WIDE, head_of, known_heads
from lab.fuzz.taking import Taking


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to fuzz.

    Attributes:
        make: the function, given a directory of its own.
        modules: of which the fuzzer shall know which lines ran.
        longest: bytes of an input.
    """

    make: Callable[[Path], Callable[[bytes], None]]
    modules: tuple[str, ...]
    longest: int = 512


def records(_: Path) -> Callable[[bytes], None]:
    """`chunks.record.decode`, and the fast look at a header."""
    heads = known_heads()
    geometries = [*golden.GEOMETRIES.values(), WIDE]
    fingerprint = golden.namespace_of("plain").fingerprint
    expected = [(record.ExpectedHeader(fingerprint, one), one) for one in geometries]

    def run(data: bytes) -> None:
        content = head_of(Taking(data), heads)
        header = None
        with suppress(RecordError):
            header = record.decode(content, KEYRING)
        with suppress(RecordError):
            record.decode(content, None, check=False)
        if header is not None:
            _agrees(header, content)
        elif content[8:12] == b"\1\0\0\0":
            assert documented.chunks_in(content) is None, "refused, though the document allows it"
        for fast, geometry in expected:
            _fast_agrees(fast, geometry, content, header, fingerprint)

    return run


def _agrees(header: record.RecordHeader, content: bytes) -> None:
    """What was decoded is what the document says, and says itself again."""
    if header.seal is None:
        found = documented.chunks_in(content)
        assert found is not None, "decoded, though the document refuses it"
        (one,) = found
        said = header.namespace, header.key, header.blocks, header.first_block
        assert said == (one.namespace, one.key, one.blocks, one.first_block)
        assert (header.tokens_per_block, header.block_bytes) == (one.tokens, one.size)
        assert (header.checksums, header.header_bytes) == (one.checksums, one.start)
    mark = (
        documented.checksum
        if header.seal is None
        else KEYRING.find(header.seal, header.namespace).mark
    )
    again = record.decode(record.encode(header, lambda head: mark(bytes(head))), KEYRING)
    assert again == header


def _fast_agrees(
    fast: record.ExpectedHeader,
    geometry: GroupGeometry,
    content: bytes,
    header: record.RecordHeader | None,
    fingerprint: bytes,
) -> None:
    """A header that is told good without taking it apart is good when it is."""
    if len(content) < fast.header_bytes:
        return
    head = bytearray(content[: fast.header_bytes])
    key = head[80 : 80 + min(int.from_bytes(head[32:34], "little"), 64)]
    first = fast.first_block(head, bytes(key))
    assert head == content[: fast.header_bytes]
    if first is not None:
        assert header is not None, "good at a glance, and not when it is taken apart"
        assert (header.first_block, header.header_bytes) == (first, fast.header_bytes)
        record.check_identity(header, fingerprint, bytes(key), geometry)


def segments(_: Path) -> Callable[[bytes], None]:
    """`chunks.segment.decode`."""
    heads = known_heads()

    def run(data: bytes) -> None:
        content = head_of(Taking(data), heads)
        if not segment.is_segment(content):
            return
        with suppress(RecordError):
            segment.decode(content, None, check=False)
        table = None
        with suppress(RecordError):
            table = segment.decode(content, KEYRING)
        if table is None:
            if content[8:12] == b"\2\0\0\0":
                assert documented.chunks_in(content) is None, (
                    "refused, though the document allows it"
                )
            return
        headers = {key: table.header(key) for key in table.entries}
        if table.seal is None:
            found = documented.chunks_in(content)
            assert found is not None, "decoded, though the document refuses it"
            assert [one.key for one in found] == list(headers)
            for one in found:
                header = headers[one.key]
                assert header.checksums == one.checksums
                assert (header.blocks, header.first_block) == (one.blocks, one.first_block)
                assert (header.tokens_per_block, header.block_bytes) == (one.tokens, one.size)
                assert table.entries[one.key].offset == one.start

    return run


TARGETS: Mapping[str, Target] = {
    "records": Target(records, ("kvstrata.chunks",)),
    "segments": Target(segments, ("kvstrata.chunks",)),
    "files": Target(files, ("kvstrata.chunks", "kvstrata.tiers", "kvstrata.fileio")),
    "documents": Target(documents, ("kvstrata.tiers", "kvstrata.fileio"), 4096),
    "snapshots": Target(snapshots, ("kvstrata.wire",), 4096),
}


def run_once(name: str, data: bytes, scratch: Path | None = None) -> None:
    """One execution of a target on one input, in a directory that goes again."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        TARGETS[name].make(Path(directory))(data)
