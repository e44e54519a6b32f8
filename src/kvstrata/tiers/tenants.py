"""A storage tier in which tenants keep to their quotas, together with all others that use the same root.

How much each holds is estimated from the headers of some hundred files, by one engine at a time, and stands
in a small file of the root for the others. Nobody waits: what does not fit is not written.
"""

import contextlib
import logging
import math
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from kvstrata.chunks.key import ChunkKey, parse_file_name
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.record import NO_TENANT, TENANT_BYTES
from kvstrata.chunks.tenants import TenantTerms
from kvstrata.errors import RecordError
from kvstrata.fileio.beneath import read_small
from kvstrata.fileio.lease import lease
from kvstrata.fileio.publish import publish
from kvstrata.fileio.sharing import Sharing
from kvstrata.tiers.attribution import Attribution
from kvstrata.tiers.catalog import fingerprint_of
from kvstrata.tiers.passing import PassingTier
from kvstrata.tiers.quotas import Held, Quotas
from kvstrata.tiers.records import tenant_of
from kvstrata.tiers.ring import Directories, sample
from kvstrata.tiers.tier import Failed, Tier, Transfer, WriteOutcome

logger = logging.getLogger(__name__)

QUOTA = "quota"
"""Reason of a write that would exceed a tenant's quota."""
TENANTS_FILE = "tenants.json"
LEASE_FILE = "tenants.lock"
FILES = 200
"""Files that are opened for a look. What one says of a tenant that holds a tenth of the root is within some
40 % in 95 cases of 100; of one that holds half, within 14 %."""
NEW = 0.3
"""What a look counts beside those before it: together they err by less than half as much. Whoever may write
as soon as some look errs to his favour would write with each such look."""
REST_SECONDS = 60.0
LEAST_SECONDS = 20.0
"""Between two looks, while a tenant's writes are refused."""
LEAST_PART = 100_000
"""A tenant of whom no more than this part of the root is left is forgotten until something of it is seen."""
MAX_BYTES = 1 << 20


class Census(msgspec.Struct, frozen=True):
    """What a look has shown; content of `TENANTS_FILE`.

    Attributes:
        round: number of the look, counted by all processes together.
        used: bytes of all, estimated.
        held: bytes by "<fingerprint>/<mark>", hexadecimal.
    """

    round: int = 0
    used: float = 0.0
    held: dict[str, float] = {}

    @property
    def by_mark(self) -> Held:
        """Bytes by fingerprint and mark. What is no such pair is left out."""
        found: dict[tuple[bytes, bytes], float] = {}
        for text, nbytes in self.held.items():
            with contextlib.suppress(ValueError):
                space, mark = (bytes.fromhex(part) for part in text.split("/"))
                found[space, mark] = nbytes
        return found


def look(root: Path, chance: random.Random, known: Census) -> Census:
    """What tenants hold, from a sample.

    Raises:
        OSError: the root cannot be looked at.
    """
    with os.scandir(root) as entries:
        spaces = {
            entry.path: fingerprint
            for entry in entries
            if (fingerprint := fingerprint_of(entry.name)) is not None
            and entry.is_dir(follow_symlinks=False)
        }
    seen = sample(Directories(sorted(spaces)), chance, enough=FILES)
    held: dict[str, float] = {}
    files = seen.files if len(seen.files) <= 2 * FILES else chance.sample(seen.files, 2 * FILES)
    share = seen.share * len(files) / max(len(seen.files), 1)
    for one in files:
        mark = _mark(one.path)
        if mark is not None:
            space = spaces[str(Path(one.path).parents[2])]
            who = f"{space}/{mark.hex()}"
            held[who] = held.get(who, 0.0) + one.nbytes / share
    if known.round:
        held = {
            who: (1 - NEW) * known.held.get(who, 0.0) + NEW * held.get(who, 0.0)
            for who in {**known.held, **held}
        }
        held = {who: nbytes for who, nbytes in held.items() if nbytes >= seen.nbytes / LEAST_PART}
    return Census(known.round + 1, seen.nbytes, held)


class QuotaTier(PassingTier):
    """Writes of each tenant only what it may hold; see the module.

    Args:
        inner: the tier, with all that may keep it from writing.
        root: that the quotas are of.
        namespace: that is written to.
        terms: by tenant.
        bound: of the root in bytes; asked when it is looked; infinite where there is none.
        watch: told the bytes of each tenant after each look; called by the tier's thread.
        sharing: who may use what is written down of the root.
    """

    def __init__(
        self,
        inner: Tier,
        root: Path,
        namespace: Namespace,
        terms: TenantTerms,
        bound: Callable[[], float],
        watch: Callable[[Mapping[str, float]], None],
        sharing: Sharing = Sharing.USER,
    ) -> None:
        super().__init__(inner)
        self._root = root
        self._quotas = Quotas(terms, namespace.fingerprint)
        self._bound = bound
        self._watch = watch
        self._sharing = sharing
        self._owners = Attribution()
        self._guard = threading.Lock()
        self._census: Census | None = None
        self._limit = math.inf
        self._written: dict[bytes, float] = {}
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._failed = ""
        self._thread = threading.Thread(target=self._run, name="kvstrata-tenants", daemon=True)
        self._thread.start()

    def attribute(self, marks: Mapping[ChunkKey, bytes]) -> None:
        """See `Tier.attribute`."""
        self._owners.set(marks)
        self.inner.attribute(marks)

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        (outcome,) = self.write_many([(key, payload, first_block)])
        return outcome

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """See `Tier.write_many`."""
        over = Failed(QUOTA, "a tenant's quota is reached")
        fits = [self._admit(self._owners.of(key), len(payload)) for key, payload, _ in given]
        passed = [one for one, fit in zip(given, fits, strict=True) if fit]
        outcomes = iter(self.inner.write_many(passed))
        return [next(outcomes) if fit else over for fit in fits]

    def close(self) -> None:
        """See `Tier.close`."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(1.0)
        self.inner.close()

    def look(self) -> None:
        """Find out what tenants hold, or let another process do it and read what it found.

        Raises:
            OSError: the root cannot be looked at.
        """
        with lease(f"{self._root}/{LEASE_FILE}") as got:
            known = self._read()
            census = look(self._root, random.Random(), known) if got else known
            if got:
                content = memoryview(msgspec.json.encode(census))
                publish(f"{self._root}/{TENANTS_FILE}", [content], sharing=self._sharing)
        limit = self._bound()
        with self._guard:
            if self._census is None or census.round != self._census.round:
                # That much of what was written is in the estimate by now.
                for mark in list(self._written):
                    self._written[mark] *= 1 - NEW
                    if self._written[mark] < 1:
                        del self._written[mark]
            self._census, self._limit = census, limit
        self._watch(self._quotas.by_tenant(census.by_mark))

    def _admit(self, mark: bytes, nbytes: int) -> bool:
        if mark == NO_TENANT:
            return True
        with self._guard:
            if self._census is None:
                self._wake.set()
                return False  # for a moment after the start
            census = self._census
            may = self._quotas.room(mark, census.by_mark, census.used, self._limit)
            written = self._written.get(mark, 0.0) + nbytes
            if written > may:
                self._wake.set()
                return False
            self._written[mark] = written
            return True

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                self.look()
                self._failed = ""
            except OSError as error:
                if self._failed != str(error):
                    self._failed = str(error)
                    logger.warning(
                        "cannot find out what tenants hold below %s (%s); what was known last counts",
                        self._root,
                        error,
                    )
            self._stopped.wait(LEAST_SECONDS)
            self._wake.wait(REST_SECONDS - LEAST_SECONDS)

    def _read(self) -> Census:
        try:
            data = read_small(f"{self._root}/{TENANTS_FILE}", MAX_BYTES)
            return msgspec.json.decode(data, type=Census)
        except (OSError, msgspec.DecodeError):
            return Census()


def _mark(path: str) -> bytes | None:
    """Whose a file's chunk is, as the file says; None where it cannot be read."""
    key = parse_file_name(os.path.basename(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        mark = tenant_of(fd, key) if key is not None else None
        return mark if mark is None or len(mark) == TENANT_BYTES else None
    except (RecordError, OSError):
        return None
    finally:
        os.close(fd)
