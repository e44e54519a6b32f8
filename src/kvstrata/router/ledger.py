"""The last decisions, and what became of them. Nothing is turned into JSON before someone asks."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvstrata.routing.decision import Decision

MOST_DECISIONS = 4096
MOST_APPRAISALS = 32_768
"""Candidates of all decisions that are kept with all their terms: 60 MiB at most."""


class Ending(msgspec.Struct, frozen=True, gc=False):
    """What became of one attempt.

    Attributes:
        replica: that had it.
        status: of the answer; 0 when there was none.
        ttft: seconds from sending it to the first bytes of the answer's body, or None.
        seconds: from sending it to the end.
        cached_tokens: that the engine says it did not compute, or None.
        failed: by the replica's fault.
        streamed: so that `ttft` is that of a token, not of the whole answer.
    """

    replica: str
    status: int
    ttft: float | None
    seconds: float
    cached_tokens: int | None
    failed: bool
    streamed: bool = False


@dataclass(eq=False, slots=True)
class Record:
    """One request's latest decision.

    Attributes:
        decision: of the policy; of an old one only the chosen replica and the runner-up are considered.
        at: when it was made, seconds since 1970.
        path: that was asked for.
        model: as the client asked for it.
        doubt: what could not be known of its prompt; empty if nothing.
        ending: of the latest attempt; None while it runs.
        earlier: attempts before that, which failed.
        considered: how many candidates there were.
    """

    decision: Decision
    at: float
    path: str
    model: str
    doubt: str = ""
    ending: Ending | None = None
    earlier: tuple[Ending, ...] = ()
    considered: int = field(init=False)

    def __post_init__(self) -> None:
        self.considered = len(self.decision.appraisals)

    def as_dict(self, most: int | None = None) -> dict[str, Any]:
        """As plain data for JSON, but for the appraisals, which `msgspec.json` writes as they are.

        Args:
            most: of more candidates, only the chosen one and the runner-up are told; None tells all.
        """
        decision, ending = self.decision, self.ending
        appraisals = decision.appraisals
        if most is not None and len(appraisals) > most:
            appraisals = appraisals.only((decision.chosen, decision.runner_up))
        return {
            "id": decision.id,
            "at": self.at,
            "path": self.path,
            "model": self.model,
            "policy": decision.policy,
            "reason": decision.reason,
            "chosen": decision.chosen,
            "runner_up": decision.runner_up,
            "tokens": decision.tokens,
            "load_cap": decision.load_cap,
            "doubt": self.doubt,
            "candidates": self.considered,
            "considered": tuple(appraisals),
            "outcome": None
            if ending is None
            else {**msgspec.structs.asdict(ending), "tries": 1 + len(self.earlier)},
            "earlier": [
                {"replica": one.replica, "status": one.status, "seconds": one.seconds}
                for one in self.earlier
            ],
        }


class Ledger:
    """The last decisions by id. Bounded: the oldest lose what was not chosen, and then are forgotten.

    Args:
        most: decisions that are kept.
        most_appraisals: candidates, over all of them, that are kept whole.
    """

    def __init__(self, most: int = MOST_DECISIONS, most_appraisals: int = MOST_APPRAISALS) -> None:
        self._most = most
        self._most_appraisals = most_appraisals
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._whole: deque[Record] = deque()
        self._appraisals = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def appraisals(self) -> int:
        """Candidates of decisions that are kept whole."""
        return self._appraisals

    def decided(self, record: Record) -> None:
        """A request goes somewhere; again, if it was tried elsewhere before."""
        before = self._records.pop(record.decision.id, None)
        if before is not None and before.ending is not None:
            record.earlier = (*before.earlier, before.ending)
        self._records[record.decision.id] = record
        self._whole.append(record)
        self._appraisals += record.considered
        while len(self._records) > self._most:
            self._records.popitem(last=False)
        while self._appraisals > self._most_appraisals or len(self._whole) > self._most:
            oldest = self._whole.popleft()
            self._appraisals -= oldest.considered
            if self._records.get(oldest.decision.id) is oldest:
                self._shorten(oldest)

    def ended(self, identity: str, ending: Ending) -> None:
        """An attempt is over. One whose decision is forgotten is no error."""
        record = self._records.get(identity)
        if record is not None:
            record.ending = ending

    def get(self, identity: str) -> Record | None:
        """The decision of that id, or None."""
        return self._records.get(identity)

    def newest(self, count: int) -> Iterator[Record]:
        """At most `count`, the newest first."""
        for record, _ in zip(reversed(self._records.values()), range(count), strict=False):
            yield record

    @staticmethod
    def _shorten(record: Record) -> None:
        decision = record.decision
        kept = decision.appraisals.only((decision.chosen, decision.runner_up))
        record.decision = msgspec.structs.replace(decision, appraisals=kept)
