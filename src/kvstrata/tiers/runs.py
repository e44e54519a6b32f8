"""Runs of a segment's chunks: those that follow each other in the file, and come with one call."""

from collections.abc import Sequence

from kvstrata.chunks.record import PAGE
from kvstrata.fileio.direct import Reading

Piece = tuple[int, memoryview, int, int]
"""Of a segment's chunk: where it stands in the file, where it goes, which one it is, and where its checksums
stand in the table."""


def cut(pieces: Sequence[Piece], step_bytes: int) -> list[list[Piece]]:
    """Cut pieces of a file, in order, into runs of at most `step_bytes`, or of one piece."""
    steps: list[list[Piece]] = []
    step: list[Piece] = []
    nbytes, end = 0, -PAGE
    for piece in pieces:
        offset, size = piece[0], len(piece[1])
        nbytes += size
        if nbytes > step_bytes or not 0 <= offset - end < PAGE:
            step = []
            steps.append(step)
            nbytes = size
        step.append(piece)
        end = offset + size
    return steps


def bring(source: Reading, run: Sequence[Piece], gap: memoryview) -> bool:
    """Read a run; what stands between its pieces goes to `gap`, a page. Whether all came."""
    first = at = run[0][0]
    buffers: list[memoryview] = []
    for offset, part, _, _ in run:
        if offset > at:
            buffers.append(gap[: offset - at])
        buffers.append(part)
        at = offset + len(part)
    try:
        return source.read_at(buffers, first) == at - first
    except OSError:
        return False
