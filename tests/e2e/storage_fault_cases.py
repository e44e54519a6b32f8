"""Faults of a storage directory, and what must be seen of each; see `test_storage_faults.py`."""

import errno
from dataclasses import dataclass

from lab.faulty_io.control import Rule
from tests.e2e.faulty_engine import WHOLE

RECORDS, TEMPORARY = "*.kv", "*.tmp-*"
NAMING = ("rename", "link")
"""Calls that make a written file appear under its name."""
CHANGING = ("write", "fsync", *NAMING, "unlink", "mkdir", "rmdir", "utime", "truncate")


@dataclass(frozen=True)
class Fault:
    """What fails, and what must be seen of it.

    Attributes:
        rules: what fails.
        tells: metrics that must rise, by the beginnings of their names.
        cached: tokens of a known prompt that must come from storage nevertheless; None where it depends.
        stored: whether a new prompt must be stored nevertheless; None where it depends.
        quiet: metrics that may not rise.
    """

    rules: list[Rule]
    tells: tuple[str, ...] = ()
    cached: int | None = None
    stored: bool | None = None
    quiet: tuple[str, ...] = ()

    @property
    def hangs(self) -> bool:
        """Whether calls do not return."""
        return any(rule.action == "hang" for rule in self.rules)

    @property
    def steady(self) -> bool:
        """Whether every call meets the same fate."""
        return all(rule.probability == 1 for rule in self.rules)


READS_ASIDE = "set_aside{operation=read,tier=filesystem}"
WRITES_ASIDE = "set_aside{operation=write,tier=filesystem}"
FROM_STORAGE = "tokens{tier=filesystem}"
STUCK = "stuck_threads{}"
BAD_IO = ("bad_records{reason=io}",)


def dropped(error: str) -> tuple[str, ...]:
    """Chunks that were not stored because of an error."""
    return (f"writes_dropped{{reason={error}}}",)


def writing(*rules: Rule, error: str) -> Fault:
    """Writes fail and reads do not."""
    return Fault([*rules], (*dropped(error), WRITES_ASIDE), WHOLE, stored=False, quiet=BAD_IO)


def every(error: int) -> Rule:
    """Every call fails."""
    return Rule("all", errno=error)


FAULTS = {
    "EIO on read": Fault([Rule("read", path=RECORDS)], (*BAD_IO, READS_ASIDE), 0),
    "EIO on opening for reading": Fault([Rule("open", path=RECORDS)], (*BAD_IO, READS_ASIDE), 0),
    "EIO on looking for files": Fault(
        [Rule("stat", path=RECORDS)], (*BAD_IO, READS_ASIDE, *dropped("EIO")), 0
    ),
    "EIO on every second read": Fault(
        [Rule("read", path=RECORDS, probability=0.5, seed=3)], BAD_IO
    ),
    "EMFILE on opening": Fault(
        [Rule("open", errno=errno.EMFILE)], (*BAD_IO, *dropped("EMFILE")), 0
    ),
    "EACCES on opening": Fault(
        [Rule(["open", "access", "list", "mkdir"], errno=errno.EACCES)],
        ("bad_records{reason=permission}", READS_ASIDE, *dropped("EACCES"), WRITES_ASIDE),
        0,
        stored=False,
    ),
    "EACCES on writing": writing(
        Rule(["open", "mkdir"], errno=errno.EACCES, path=TEMPORARY), error="EACCES"
    ),
    "EIO on write": writing(Rule("write"), error="EIO"),
    "EIO on fsync": writing(Rule("fsync"), error="EIO"),
    "EIO on naming": writing(Rule(NAMING), error="EIO"),
    "EIO on closing what was written": writing(Rule("close", path=TEMPORARY), error="EIO"),
    "EIO on closing what was read": Fault([Rule("close", path=RECORDS)], (), WHOLE),
    "EIO on making directories": Fault([Rule("mkdir")], dropped("EIO"), WHOLE),
    "ENOSPC on write": writing(Rule("write", errno=errno.ENOSPC), error="ENOSPC"),
    "ENOSPC on opening": writing(Rule("open", errno=errno.ENOSPC, path=TEMPORARY), error="ENOSPC"),
    "EDQUOT on write": writing(Rule("write", errno=errno.EDQUOT), error="EDQUOT"),
    "EROFS": writing(
        Rule(CHANGING, errno=errno.EROFS),
        Rule("open", errno=errno.EROFS, path=TEMPORARY),
        error="EROFS",
    ),
    "naming is done and reported as failed": Fault(
        [Rule(NAMING, "fail_after", errno=errno.EIO, path=RECORDS)], dropped("EIO"), WHOLE
    ),
    "a server that went away (ESTALE)": Fault(
        [every(errno.ESTALE)], (*dropped("ESTALE"), WRITES_ASIDE), 0, stored=False
    ),
    "a server that went away (EIO)": Fault(
        [every(errno.EIO)], (*dropped("EIO"), WRITES_ASIDE), 0, False
    ),
    "a server that comes and goes": Fault(
        [Rule("all", errno=errno.ESTALE, probability=0.2, seed=11)], ()
    ),
    "opened, then ESTALE": Fault([Rule(["read", "stat"], errno=errno.ESTALE, path=RECORDS)], (), 0),
    "short reads and writes": Fault(
        [Rule(["read", "write"], "short", most=4096)],
        cached=WHOLE,
        stored=True,
        quiet=(*BAD_IO, "bad_records{reason=truncated}"),
    ),
    "a hundred times slower": Fault(
        [Rule(["open", "read", "write", "rename", "link"], "delay", seconds=0.02)],
        cached=WHOLE,
        stored=True,
    ),
    "permissions that flip": Fault(
        [Rule(["open", "read"], errno=errno.EACCES, probability=0.4, seed=5)],
        ("bad_records{reason=permission}",),
    ),
    "wrong bytes": Fault(
        [Rule("read", "flip", path=RECORDS, seed=9)],
        ("bad_records{",),
        0,
        quiet=(READS_ASIDE, FROM_STORAGE),
    ),
    "reads that hang": Fault(
        [Rule("read", "hang", path=RECORDS)],
        ("read_deadlines{}", STUCK, READS_ASIDE),
        quiet=(FROM_STORAGE,),
    ),
    "opening that hangs": Fault(
        [Rule("open", "hang")], ("read_deadlines{}", STUCK), quiet=(FROM_STORAGE,)
    ),
    "looking for files that hangs": Fault(
        [Rule(["stat", "access"], "hang")], ("read_deadlines{}", STUCK), quiet=(FROM_STORAGE,)
    ),
    "writes that hang": Fault([Rule("write", "hang")], (STUCK, "queue_depth{queue=write}")),
    "a server that hangs": Fault(
        [Rule("all", "hang")], ("read_deadlines{}", STUCK), quiet=(FROM_STORAGE,)
    ),
}
