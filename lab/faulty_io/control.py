"""Rules by which system calls on one directory fail, changed while the process runs.

    faults = FaultyIO(directory)
    process = subprocess.Popen(command, env={**os.environ, **faults.environment()})
    faults.set([Rule("read", errno=errno.EIO, path="*.kv", probability=0.1, seed=7)])
    ...
    faults.clear()
    print(faults.totals())

The process loads `faulty_io.c`, compiled when it is first needed, before its C library (LD_PRELOAD). Only
calls on paths below the directory and on descriptors that were opened there are looked at. A process that
is forked from it obeys the same rules; several processes may be started with one `FaultyIO`.
"""

import ctypes
import errno as errors
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faulty_io.c")
BUILD = Path(__file__).resolve().parents[2] / "build" / "faulty_io"
MAGIC = 0x46494F31
_BANKS, _RULES, _TRACES, _ROOM, _PATTERN = 8, 32, 8192, 240, 112
_ALWAYS = (1 << 64) - 1

CALLS = (
    "open",
    "read",
    "write",
    "close",
    "fsync",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "stat",
    "access",
    "list",
    "utime",
    "truncate",
)
"""Kinds of call; `read` is also pread, readv, preadv, preadv2, `stat` also fstat and statx, and so on."""

ACTIONS = (
    "fail",  # with `errno`, and nothing is done
    "fail_after",  # with `errno`, although it was done, as when a server's answer is lost
    "short",  # a read or write of at most `most` bytes
    "delay",  # by `seconds`
    "hang",  # until the rules change; then it goes on as if nothing had been
    "kill_before",  # SIGKILL to the process itself
    "kill_after",
    "flip",  # one bit of what was read
    "lose",  # a write that says it was done, and nothing was
)
"""What a rule does to a call."""


class FaultyIOError(Exception):
    """The library cannot be made, or a rule cannot be told to it; says the remedy."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to some calls. Every rule that matches a call is asked, in order, until one fails it.

    Attributes:
        calls: one of `CALLS`, or several, or "all".
        action: one of `ACTIONS`.
        errno: of "fail" and "fail_after".
        path: shell pattern on the path below the directory ("." for itself); `*` matches slashes too. Of a
            rename or link it is the new path.
        after: so many matching calls pass first.
        times: so many are met, then no more; None for no bound.
        probability: of a call after that to be met; which ones depends on `seed` and their number alone.
        seed: see above; also picks the bits of "flip".
        seconds: of "delay".
        most: bytes of "short", at least 1.
    """

    calls: str | Sequence[str]
    action: str = "fail"
    errno: int = errors.EIO
    path: str = "*"
    after: int = 0
    times: int | None = None
    probability: float = 1.0
    seed: int = 0
    seconds: float = 0.0
    most: int = 4096

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of call it is for."""
        if self.calls == "all":
            return CALLS
        return (self.calls,) if isinstance(self.calls, str) else tuple(self.calls)

    @property
    def label(self) -> str:
        """Of a fault in reports: "read EIO", "write short", "all ESTALE"."""
        what = self.action
        if what.startswith("fail"):
            late = " late" if what == "fail_after" else ""
            what = errors.errorcode.get(self.errno, str(self.errno)) + late
        return f"{self.calls if isinstance(self.calls, str) else '+'.join(self.calls)} {what}"


@dataclass(frozen=True, slots=True)
class Count:
    """Calls that a rule saw, and those that it met."""

    rule: Rule
    matched: int
    met: int


@dataclass(frozen=True, slots=True)
class Step:
    """One call on the directory.

    Attributes:
        call: one of `CALLS`.
        path: below the directory.
        error: errno that the caller got, 0 for none.
        nbytes: of a read or write.
    """

    call: str
    path: str
    error: int
    nbytes: int


class _Rule(ctypes.Structure):
    _fields_ = (
        ("calls", ctypes.c_uint64),
        ("action", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("after", ctypes.c_uint64),
        ("times", ctypes.c_uint64),
        ("threshold", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("delay_ns", ctypes.c_uint64),
        ("most", ctypes.c_uint64),
        ("matched", ctypes.c_uint64),
        ("met", ctypes.c_uint64),
        ("path", ctypes.c_char * _PATTERN),
    )


class _Bank(ctypes.Structure):
    _fields_ = (("count", ctypes.c_uint64), ("rules", _Rule * _RULES))


class _Trace(ctypes.Structure):
    _fields_ = (
        ("done", ctypes.c_uint64),
        ("call", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("nbytes", ctypes.c_uint64),
        ("path", ctypes.c_char * _ROOM),
    )


class _Control(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("tracing", ctypes.c_uint32),
        ("generation", ctypes.c_uint64),
        ("clock_ns", ctypes.c_int64),
        ("traced", ctypes.c_uint64),
        ("seen", ctypes.c_uint64 * len(CALLS)),
        ("banks", _Bank * _BANKS),
        ("traces", _Trace * _TRACES),
    )


class FaultyIO:
    """Rules for the processes that were started with its environment.

    Args:
        directory: absolute, and named to the process exactly so; need not exist yet.
        control: the file of the rules; a temporary one by default, removed by `close`.

    Raises:
        FaultyIOError: the library cannot be made.
    """

    def __init__(self, directory: Path, control: Path | None = None) -> None:
        if not directory.is_absolute():
            raise FaultyIOError(f"{directory} must be an absolute path")
        self.directory = directory
        self._library = library()
        if control is None:
            fd, name = tempfile.mkstemp(prefix="faulty-io-")
            self._file = Path(name)
        else:
            fd, self._file = os.open(control, os.O_RDWR | os.O_CREAT | os.O_TRUNC), control
        try:
            os.truncate(fd, ctypes.sizeof(_Control))
            self._map = mmap.mmap(fd, ctypes.sizeof(_Control))
        finally:
            os.close(fd)
        self._control = _Control.from_buffer(self._map)
        self._control.magic = MAGIC
        self._rules: list[tuple[Rule, ...]] = [()] * _BANKS
        self._retired: Counter[str] = Counter()

    def __enter__(self) -> "FaultyIO":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def environment(self) -> dict[str, str]:
        """Variables of a process that shall obey; LD_PRELOAD keeps what ours holds."""
        loaded = [str(self._library), *os.environ.get("LD_PRELOAD", "").split()]
        return {
            "LD_PRELOAD": " ".join(loaded),
            "FAULTY_IO_DIRECTORY": str(self.directory),
            "FAULTY_IO_CONTROL": str(self._file),
        }

    def set(self, rules: Iterable[Rule]) -> None:
        """Obey these rules instead, from the next call on; calls that hang go on.

        Raises:
            FaultyIOError: too many rules, or one that cannot be.
        """
        new = tuple(rules)
        if len(new) > _RULES:
            raise FaultyIOError(f"{len(new)} rules, at most {_RULES}")
        told = [_encode(rule) for rule in new]
        generation = self._control.generation + 1
        index = generation % _BANKS
        # Eight sets of rules are kept, so that a call that reads one of them never sees it change.
        self._retired.update(_labels(self._counts(index)))
        bank = self._control.banks[index]
        bank.count = 0
        for at, one in enumerate(told):
            bank.rules[at] = one
        bank.count = len(told)
        self._rules[index] = new
        self._control.generation = generation

    def clear(self) -> None:
        """No more faults; calls that hang go on."""
        self.set([])

    def counts(self) -> list[Count]:
        """Of each of the present rules."""
        return self._counts(self._control.generation % _BANKS)

    def totals(self) -> Counter[str]:
        """Calls that were met since the beginning, by `Rule.label`."""
        found = Counter(self._retired)
        for index in range(_BANKS):
            found.update(_labels(self._counts(index)))
        return +found

    def seen(self) -> dict[str, int]:
        """Calls on the directory since the beginning, by kind, met or not."""
        return {call: int(count) for call, count in zip(CALLS, self._control.seen, strict=True)}

    def jump(self, seconds: float) -> None:
        """Set the wall clock that Python code sees so far from the true one. Clocks that only go forward,
        times of files and other libraries' clocks stay."""
        self._control.clock_ns = round(seconds * 1e9)

    def trace(self) -> None:
        """Record every call from now on, the first 8192 of them."""
        self._control.tracing = 0
        ctypes.memset(ctypes.addressof(self._control.traces), 0, ctypes.sizeof(_Trace) * _TRACES)
        self._control.traced = 0
        self._control.tracing = 1

    def steps(self) -> list[Step]:
        """What was recorded; recording ends.

        Raises:
            FaultyIOError: there were more calls than can be recorded.
        """
        self._control.tracing = 0
        if self._control.traced > _TRACES:
            raise FaultyIOError(f"{self._control.traced} calls, at most {_TRACES} are recorded")
        found = (self._control.traces[at] for at in range(self._control.traced))
        return [
            Step(CALLS[one.call], os.fsdecode(one.path), one.error, one.nbytes)
            for one in found
            if one.done
        ]

    def close(self) -> None:
        """Let everything go on that hangs, and remove the file; processes that have it keep it."""
        self.clear()
        del self._control
        self._map.close()
        self._file.unlink(missing_ok=True)

    def _counts(self, index: int) -> list[Count]:
        told = self._control.banks[index].rules
        return [
            Count(rule, int(told[at].matched), int(told[at].met))
            for at, rule in enumerate(self._rules[index])
        ]


def library() -> Path:
    """The compiled library; made once for each version of its source.

    Raises:
        FaultyIOError: there is no C compiler, or it failed.
    """
    made = BUILD / f"faulty_io-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if made.exists():
        return made
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FaultyIOError("no C compiler here (cc); on Debian: apt-get install gcc libc6-dev")
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as place:
        fresh = Path(place) / "faulty_io.so"
        command = [compiler, "-std=gnu11", "-O2", "-Wall", "-shared", "-fPIC"]
        run = subprocess.run(
            [*command, "-o", str(fresh), str(SOURCE), "-ldl"],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise FaultyIOError(
                f"{compiler} cannot compile {SOURCE.name}; on Debian: apt-get install gcc libc6-dev\n"
                + run.stderr[-2000:]
            )
        fresh.rename(made)
    return made


def _labels(counts: Iterable[Count]) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in counts:
        found[one.rule.label] += one.met
    return found


def _encode(rule: Rule) -> _Rule:
    """A rule as the library reads it.

    Raises:
        FaultyIOError: it cannot be told.
    """
    unknown = set(rule.kinds) - set(CALLS)
    if unknown or rule.action not in ACTIONS:
        known = f"calls {', '.join(CALLS)}; actions {', '.join(ACTIONS)}"
        raise FaultyIOError(f"{rule} cannot be: there are {known}")
    pattern = os.fsencode(rule.path)
    if len(pattern) >= _PATTERN or rule.most < 1 or not 0 <= rule.probability <= 1:
        raise FaultyIOError(f"{rule} cannot be: its path is too long, or a number out of bounds")
    return _Rule(
        calls=sum(1 << CALLS.index(kind) for kind in rule.kinds),
        action=ACTIONS.index(rule.action),
        error=rule.errno,
        after=rule.after,
        times=_ALWAYS if rule.times is None else rule.times,
        threshold=round(rule.probability * (1 << 32)),
        seed=rule.seed & _ALWAYS,
        delay_ns=round(rule.seconds * 1e9),
        most=rule.most,
        path=pattern,
    )
