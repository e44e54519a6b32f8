"""Whole files, as the tier reads them: what is loaded is what was stored under that key, or nothing is."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from kvstrata.chunks.key import group_of, relative_path
from kvstrata.errors import RecordError
from kvstrata.tiers.catalog import check_record
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Bad, Loaded, Missing
from lab import golden
from lab.fuzz import documented
from lab.fuzz.heads import repair
from lab.fuzz.taking import Taking, edit

Together = Sequence[golden.Chunk]
FILES: Sequence[tuple[str, Together]] = [
    (name, together)
    for name in golden.ROOTS
    for together in [*((chunk,) for chunk in golden.RECORDS), *golden.SEGMENTS]
]
"""Each known file: its root, and the chunks that it holds."""


class _Root:
    """A copy of the stored files, and a tier that reads it."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.tier: FilesystemTier = golden.tier_of(name, golden.copy_of(name, scratch))
        self.tier.prepare()
        self.fingerprint = golden.namespace_of(name).fingerprint
        self.sealed = golden.ROOTS[name] is not None

    def path(self, chunk: golden.Chunk) -> Path:
        return self.tier.directory / relative_path(chunk.key)


def files(scratch: Path) -> Callable[[bytes], None]:
    """`FilesystemTier.read_many`, and `check_record` as `kvstrata verify` calls it.

    Input: flags (1 bit: repair the checksum of the header; 2 bits: first block), which known file, which
    other one; then edits.
    """
    roots = {name: _Root(name, scratch) for name in golden.ROOTS}
    contents = [roots[name].path(together[0]).read_bytes() for name, together in FILES]

    def run(data: bytes) -> None:
        taking = Taking(data)
        flags = taking.number()
        chosen, other = taking.number() % len(FILES), taking.number() % len(FILES)
        name, together = FILES[chosen]
        content = bytearray(contents[chosen])
        edit(taking, content, contents[other])
        repaired = bool(flags & 1) and not roots[name].sealed
        if flags & 1:
            repair(content)
        root = roots[name]
        path = root.path(together[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # other names of the file keep what they stood for
        path.write_bytes(content)
        golden.link(root.tier.directory, [chunk.key for chunk in together])
        _read(root, together, bytes(content), (flags >> 1) % 4, repaired)
        if path.exists():
            _verify(root, path, bytes(content), together[0])

    return run


def _read(root: _Root, together: Together, content: bytes, first: int, repaired: bool) -> None:
    """Read all chunks of a file from block `first` on and compare; the tier may remove the file."""
    buffers = [bytearray(b"\xa5" * len(chunk.payload)) for chunk in together]
    wanted = [
        (chunk.key, memoryview(buffer), min(first, chunk.geometry.blocks_per_chunk - 1))
        for chunk, buffer in zip(together, buffers, strict=True)
    ]
    outcomes = root.tier.read_many(wanted)
    for chunk, buffer, outcome, (_, _, begin) in zip(
        together, buffers, outcomes, wanted, strict=True
    ):
        assert isinstance(outcome, Loaded | Missing | Bad)
        if not isinstance(outcome, Loaded):
            continue
        low = begin * chunk.geometry.block_bytes
        assert outcome.nbytes == len(buffer) - low
        assert buffer[:low] == b"\xa5" * low, "bytes before the first block that was asked for"
        if (
            repaired
        ):  # whoever may write the checksums may write anything: what the file says, counts
            assert bytes(buffer[low:]) == _said(root, chunk, content, begin)
        else:
            assert buffer[low:] == chunk.payload[low:], "not what was stored"


def _said(root: _Root, chunk: golden.Chunk, content: bytes, begin: int) -> bytes | None:
    """What the document makes of a file; None where it does not give the chunk."""
    geometry = chunk.geometry
    shape = geometry.blocks_per_chunk, geometry.tokens_per_block, geometry.block_bytes
    for one in documented.chunks_in(content) or ():
        if one.key == chunk.key and one.namespace == root.fingerprint and one.first_block <= begin:
            if (one.blocks, one.tokens, one.size) != shape:
                return None
            blocks = [one.block(content, block) for block in range(begin, one.blocks)]
            return b"".join(itertools.takewhile(lambda block: block is not None, blocks))  # type: ignore[arg-type]
    return None


def _verify(root: _Root, path: Path, content: bytes, chunk: golden.Chunk) -> None:
    """A plain file that is good to `kvstrata verify` is good to the document."""
    try:
        header = check_record(path)
    except RecordError:
        return
    if header.seal is None:
        found = [one for one in documented.chunks_in(content) or () if one.key == chunk.key]
        assert found and group_of(chunk.key) == group_of(header.key)
        blocks = range(found[0].first_block, found[0].blocks)
        assert all(found[0].block(content, block) is not None for block in blocks)
