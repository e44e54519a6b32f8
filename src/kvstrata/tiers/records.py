"""Reading records out of open files; every byte is verified while it is in the processor's cache."""

from kvstrata.chunks.checksum import DIGEST_BYTES, Buffer, digest, digest_in_parts
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey
from kvstrata.chunks.record import (
    CHECKSUMS_AT,
    ExpectedHeader,
    RecordHeader,
    check_identity,
    declared_header_bytes,
    decode,
)
from kvstrata.errors import BadReason, RecordError
from kvstrata.fileio.transfer import read_at

VERIFY_BYTES = 256 << 10
"""Bytes that are read before they are verified, so that they are still in the processor's cache."""


class RecordReader:
    """Reads chunks of one group; for several threads at once.

    A header that is as expected is not taken apart: of a small chunk's read, the interpreter's share is what
    costs.

    Args:
        namespace: fingerprint, 16 bytes.
        geometry: of the group.
    """

    def __init__(self, namespace: bytes, geometry: GroupGeometry) -> None:
        self._namespace = namespace
        self._geometry = geometry
        self._expected = ExpectedHeader(namespace, geometry)
        self._size = geometry.block_bytes
        self._step = max(1, VERIFY_BYTES // max(self._size, 1)) * self._size

    def read(self, fd: int, key: ChunkKey, into: memoryview, first_block: int) -> int | None:
        """Bring blocks `first_block` to the chunk's end into their places and verify each.

        Args:
            fd: of the open record.
            key: of the chunk.
            into: writable uint8 view of the whole chunk's `payload_bytes`.
            first_block: where to start.

        Returns:
            Bytes of these blocks; None where the record lacks some of them.

        Raises:
            RecordError: it cannot be used.
            OSError: as the operating system reports it.
        """
        header = bytearray(self._expected.header_bytes)
        whole = read_at(fd, [memoryview(header)], 0) == len(header)
        start = self._expected.first_block(header, key) if whole else None
        table: Buffer = memoryview(header)[CHECKSUMS_AT:]
        payload = len(header)
        if start is None:
            decoded = read_header(fd, len(header))
            check_identity(decoded, self._namespace, key, self._geometry)
            start, table, payload = decoded.first_block, decoded.table, decoded.header_bytes
        if start > first_block:
            return None
        run = _Run(fd, into, payload - start * self._size)
        self._verify(
            run, key, memoryview(table)[(first_block - start) * DIGEST_BYTES :], first_block
        )
        return self._geometry.payload_bytes - first_block * self._size

    def _verify(self, run: "_Run", key: ChunkKey, table: memoryview, first_block: int) -> None:
        """Fill and check blocks; `table` begins with the checksum of `first_block`."""
        size, end, at = self._size, self._geometry.payload_bytes, 0
        for low in range(first_block * size, end, self._step):
            high = min(low + self._step, end)
            if size > VERIFY_BYTES:
                found = [run.digest(low, high)]
            else:
                part = run.fill(low, high)
                found = [digest(part[one : one + size]) for one in range(0, high - low, size)]
            for one in found:
                if table[at : at + DIGEST_BYTES] != one:
                    block = first_block + at // DIGEST_BYTES
                    raise RecordError(BadReason.CHECKSUM, f"block {block} of {key.hex()}")
                at += DIGEST_BYTES


class _Run:
    """Bytes of a file on their way to the same positions of a buffer.

    Args:
        fd: of the file.
        into: the buffer.
        base: position in the file of the buffer's first byte.
    """

    def __init__(self, fd: int, into: memoryview, base: int) -> None:
        self._fd = fd
        self._into = into
        self._base = base

    def fill(self, low: int, high: int) -> memoryview:
        """Bytes `low` to `high` of the buffer, read. Raises RecordError where the file ends before."""
        part = self._into[low:high]
        got = read_at(self._fd, [part], self._base + low)
        if got < high - low:
            raise RecordError(BadReason.TRUNCATED, f"ends at byte {self._base + low + got}")
        return part

    def digest(self, low: int, high: int) -> bytes:
        """Checksum of one large block, piece by piece as it comes."""
        running = digest_in_parts()
        for begin in range(low, high, VERIFY_BYTES):
            running.update(self.fill(begin, min(begin + VERIFY_BYTES, high)))
        return running.digest()


def read_header(fd: int, expected_bytes: int) -> RecordHeader:
    """Read and decode the header of an open record.

    Args:
        fd: of the file.
        expected_bytes: how long the header probably is.

    Raises:
        RecordError: see `kvstrata.chunks.record.decode`.
        OSError: as the operating system reports it.
    """
    data = memoryview(bytearray(expected_bytes))
    data = data[: read_at(fd, [data], 0)]
    if len(data) < (length := declared_header_bytes(data)):
        data = memoryview(bytearray(length))
        data = data[: read_at(fd, [data], 0)]
    return decode(data)
