"""Faults of system calls on the directory, beneath one engine: see `lab.faulty_io`."""

import contextlib
import errno
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lab.faulty_io.control import FaultyIO, Rule

SLOW = 0.005
"""Seconds that a call takes at least: about a hundred times what it takes else."""
CHANGES = ("write", "rename", "unlink", "mkdir", "utime", "truncate")

RULES: Mapping[str, Rule] = {
    f"call: {rule.label}": rule
    for rule in (
        *(Rule(call) for call in ("open", "read", "write", "rename", "close", "stat", "list")),
        Rule("fsync"),
        Rule("read", errno=errno.ESTALE),
        Rule("all", errno=errno.ESTALE),
        Rule("write", errno=errno.ENOSPC),
        Rule("mkdir", errno=errno.ENOSPC),
        Rule(CHANGES, errno=errno.EROFS),
        Rule("open", errno=errno.EACCES),
        Rule("open", errno=errno.EMFILE),
        Rule("unlink", errno=errno.EPERM),
        Rule("rename", action="fail_after"),
        Rule("close", action="fail_after"),
        Rule("read", action="short"),
        Rule("write", action="short"),
        Rule("all", action="delay", seconds=SLOW),
        Rule("read", action="hang"),
        Rule("open", action="hang"),
        Rule("stat", action="hang"),
        Rule("write", action="hang"),
        Rule("rename", action="hang"),
        Rule("close", action="hang"),
        Rule("all", action="hang"),
        Rule("read", action="flip"),
        Rule("write", action="lose"),
    )
}
PROBABILITIES = (1.0, 0.3, 0.1, 0.03)


class FaultyCalls:
    """The layer beneath one engine.

    Args:
        directory: that the engine is given.
    """

    def __init__(self, directory: Path) -> None:
        self._layer = FaultyIO(directory)
        self._rules: dict[str, Rule] = {}

    def environment(self) -> dict[str, str]:
        """For the engine's process."""
        return self._layer.environment()

    @contextlib.contextmanager
    def on(self, kind: str, draw: random.Random) -> Iterator[None]:
        """Let calls fail while the block runs, beside what else is on.

        Args:
            kind: one of `RULES`.
            draw: decides how many calls it is about, and which.
        """
        chance = draw.choice(PROBABILITIES)
        self._rules[kind] = replace(RULES[kind], probability=chance, seed=draw.randrange(1 << 32))
        self._layer.set(self._rules.values())
        try:
            yield
        finally:
            del self._rules[kind]
            self._layer.set(self._rules.values())  # whatever hangs goes on, and may hang again

    def met(self) -> Mapping[str, int]:
        """Calls that a rule has met so far, by the rule's label."""
        return self._layer.totals()

    def close(self) -> None:
        """Let go of everything."""
        self._layer.close()
