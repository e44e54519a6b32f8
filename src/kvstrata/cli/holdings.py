"""What was seen of a root's chunks, added up by namespace, group, age and tenant. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from kvstrata.chunks.key import ChunkKey, group_of, hash_of
from kvstrata.cli.estimates import Estimate, Sum

HOUR, DAY = 3600.0, 86400.0
BANDS = (("<1h", HOUR), ("1h-1d", DAY), ("1d-7d", 7 * DAY), (">7d", float("inf")))
"""Ages by their last use: a name, and the seconds that it ends before."""

Part = tuple[str, ...]
"""What is added up: its kind, then its names."""
ALL: Part = ("all",)


class Seen(NamedTuple):
    """One chunk.

    Attributes:
        namespace: name of its directory.
        key: of the chunk.
        nbytes: of its file; its share of one that holds several.
        age: seconds since it was last written or read; below 0 where another machine's clock is ahead.
        tenant: whose it is, as `--tenant` takes it; empty where that was not looked at.
    """

    namespace: str
    key: ChunkKey
    nbytes: float
    age: float
    tenant: str = ""


@dataclass(slots=True)
class Amount:
    """Chunks and their bytes."""

    chunks: Sum = field(default_factory=Sum)
    nbytes: Sum = field(default_factory=Sum)


@dataclass(slots=True)
class Ages:
    """The shortest and the longest time since a use among what was seen, seconds."""

    newest: float
    oldest: float


class Holdings:
    """Adds up chunks.

    Attributes:
        files: chunks that were seen.
    """

    def __init__(self) -> None:
        self.files = 0
        self._amounts: defaultdict[Part, Amount] = defaultdict(Amount)
        self._ages: dict[str, Ages] = {}

    def add(self, seen: Iterable[Seen]) -> None:
        """Count chunks; those of one hash in one namespace all in one call."""
        hashes: defaultdict[tuple[str, bytes], list[Seen]] = defaultdict(list)
        for one in seen:
            hashes[one.namespace, hash_of(one.key)].append(one)
        for together in hashes.values():
            self._add(together)

    def parts(self, kind: str, *names: str) -> list[str]:
        """Names of what was seen of a kind, below these names, in order."""
        return sorted(part[-1] for part in self._amounts if part[:-1] == (kind, *names))

    def chunks(self, part: Part, share: float) -> Estimate:
        """How many there are of something in all, where this share of the directories was seen."""
        typical = self._of(ALL).chunks.typical
        return self._of(part).chunks.estimate(share, typical)

    def nbytes(self, part: Part, share: float) -> Estimate:
        """Their bytes; see `chunks`."""
        typical = self._of(ALL).nbytes.typical
        return self._of(part).nbytes.estimate(share, typical)

    def ages(self, namespace: str) -> Ages | None:
        """Of a namespace's chunks; None where none was seen."""
        return self._ages.get(namespace)

    def _of(self, part: Part) -> Amount:
        return self._amounts.get(part) or Amount()

    def _add(self, together: list[Seen]) -> None:
        of_hash: defaultdict[Part, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for one in together:
            for part in _parts(one):
                sums = of_hash[part]
                sums[0] += 1
                sums[1] += one.nbytes
            self._see(one)
        for part, (chunks, nbytes) in of_hash.items():
            amount = self._amounts[part]
            amount.chunks.add(chunks)
            amount.nbytes.add(nbytes)
        self.files += len(together)

    def _see(self, one: Seen) -> None:
        age = max(one.age, 0.0)
        ages = self._ages.setdefault(one.namespace, Ages(age, age))
        ages.newest, ages.oldest = min(ages.newest, age), max(ages.oldest, age)


def _parts(one: Seen) -> Iterable[Part]:
    yield ALL
    yield "namespace", one.namespace
    yield "group", one.namespace, str(group_of(one.key))
    yield "age", next(name for name, end in BANDS if one.age < end)
    if one.tenant:
        yield "tenant", one.tenant
