"""Past the page cache, or through it: chosen for each file by whether it is in memory.

What the page cache holds is copied from there, which no device can beat. What it does not hold costs less
processor time with O_DIRECT: no pages are found for it, none of the others are thrown out, and nothing is
copied. Whether it comes sooner is the device's to say (docs/benchmarks.md: here it does not). Which it is, is
told by the read of the header, done with RWF_NOWAIT: that takes what is there and waits for nothing,
so with a file in memory it costs nothing, and with another it is where the device begins to read. The header
stays in memory: a file that is read again soon is buffered then, and in the page cache the third time.

Nothing but speed depends on the answer. Where a file system cannot tell (EOPNOTSUPP, as tmpfs and NFS say),
tells wrongly, or refuses O_DIRECT, reads are buffered, and the tier does not ask again.
"""

import ctypes
import enum
import errno
import os
from collections.abc import Sequence
from types import TracebackType

from kvstrata.fileio.transfer import read_at

PAGE = 4096
"""Bytes. Positions, lengths and addresses of direct reads are multiples of it."""
LARGE_BYTES = 1 << 20
"""Less than this comes no faster directly: the device's answer is waited for, not its bytes."""
BUFFERED_STEP = 1 << 20
"""Bytes to read before they are verified: they are still in the processor's cache, and one thread does not
wait for another's turn at the interpreter more often than it must."""
DIRECT_STEP = 16 << 20
"""The same past the page cache: a device answers one large request faster than several in turn, and what
it brings is in no processor's cache anyway."""
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class Direct(enum.StrEnum):
    """When files are read past the page cache."""

    AUTO = "auto"
    """Where the page cache does not hold them."""
    NEVER = "never"
    ALWAYS = "always"
    """Except headers, and wherever positions or addresses are no whole pages."""


class Answer(enum.Enum):
    """What a read that may not wait says of a file."""

    HOT = enum.auto()
    COLD = enum.auto()
    UNKNOWN = enum.auto()
    """The file system does not know such reads."""


class DirectPolicy:
    """Chooses ways, and remembers what a tier's file system cannot do. Pure.

    Attributes:
        mode: as the option says.
    """

    def __init__(self, mode: Direct = Direct.AUTO) -> None:
        self.mode = mode
        self._able = mode is not Direct.NEVER
        self._proven = False

    def __repr__(self) -> str:
        return f"<DirectPolicy {self.mode}{'' if self._able else ', buffered'}>"

    def asks(self, nbytes: int) -> bool:
        """Whether the first read of a file shall find out if it is in memory.

        Args:
            nbytes: of what follows the first read.
        """
        return self._able and self.mode is Direct.AUTO and nbytes >= LARGE_BYTES

    @property
    def doubts(self) -> bool:
        """Whether no answer has been checked yet: `check` wants the same question about bytes just read."""
        return self._able and self.mode is Direct.AUTO and not self._proven

    def check(self, answer: Answer) -> None:
        """Hear what is said of bytes that were read a moment ago, and are therefore in memory."""
        if answer is Answer.HOT:
            self._proven = True
        else:
            self._able = False

    def direct(self, answer: Answer | None) -> bool:
        """Whether what follows is read past the page cache.

        Args:
            answer: of the first read, None where it was not asked.
        """
        if answer is Answer.UNKNOWN:
            self._able = False
        if not self._able or self.mode is Direct.ALWAYS:
            return self._able
        return answer is Answer.COLD and self._proven

    def refused(self, number: int | None) -> None:
        """Hear that a direct read failed with this error number."""
        if number in _CANNOT:
            self._able = False


class Reading:
    """One open file while a record is read: the header first, then what it describes.

    For one thread. The descriptor may be in use elsewhere meanwhile: its flags and position stay as they are.

    Args:
        fd: of the file.
        policy: of the tier.
        payload_bytes: that probably follow the header.
    """

    def __init__(self, fd: int, policy: DirectPolicy, payload_bytes: int) -> None:
        self._fd = fd
        self._policy = policy
        self._payload_bytes = payload_bytes
        self._direct = -1

    def __enter__(self) -> "Reading":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what was opened for it; the file itself stays open."""
        if self._direct >= 0:
            self._finish()

    @property
    def step_bytes(self) -> int:
        """How many bytes to read before they are verified."""
        return BUFFERED_STEP if self._direct < 0 else DIRECT_STEP

    def header(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer`, as `read_at` does, and choose the way for what follows it."""
        policy = self._policy
        done, answer = 0, None
        if policy.asks(self._payload_bytes):
            done, answer = _ask(self._fd, buffer, offset)
        if policy.direct(answer):
            self._open()
        if done < len(buffer):
            done += read_at(self._fd, [buffer[done:]], offset + done)
            if done and answer is Answer.COLD and policy.doubts:
                policy.check(_ask(self._fd, buffer[:done], offset)[1])
        return done

    def read_at(self, buffers: Sequence[memoryview], offset: int) -> int:
        """See `kvstrata.fileio.transfer.read_at`: the same, by the way that was chosen."""
        if self._direct < 0:
            return read_at(self._fd, buffers, offset)
        done = 0
        for buffer in buffers:
            count = self._whole_pages(buffer, offset + done)
            if count < len(buffer):
                count += read_at(self._fd, [buffer[count:]], offset + done + count)
            done += count
            if count < len(buffer):
                break
        return done

    def _whole_pages(self, buffer: memoryview, offset: int) -> int:
        """Read the pages that `buffer` begins with, as far as that goes directly. Returns bytes."""
        want = len(buffer) // PAGE * PAGE
        if self._direct < 0 or not want or offset % PAGE or _address(buffer) % PAGE:
            return 0
        try:
            return os.preadv(self._direct, [buffer[:want]], offset)
        except OSError as error:
            self._policy.refused(error.errno)
            self._finish()
            return 0  # the buffered read that follows tells of an error of the medium

    def _open(self) -> None:
        try:
            # A description of its own: flags belong to all who share one.
            flags = os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC
            self._direct = os.open(f"/proc/self/fd/{self._fd}", flags)
        except OSError as error:
            self._policy.refused(error.errno)

    def _finish(self) -> None:
        os.close(self._direct)
        self._direct = -1


def _ask(fd: int, buffer: memoryview, offset: int) -> tuple[int, Answer]:
    """Take what is in memory of some bytes. Returns how many, and what that says.

    Raises:
        OSError: of the medium.
    """
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return 0, Answer.COLD
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return 0, Answer.UNKNOWN
    return count, Answer.HOT if count == len(buffer) else Answer.COLD


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
