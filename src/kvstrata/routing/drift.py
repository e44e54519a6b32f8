"""Predicted against actual: whether an engine does what its index and the learned seconds say. Pure.

What an index says of a prompt is a claim, "at least so many tokens are there", and no more than its longest
reach. An answer that tells its cached tokens puts the claim to the test. Two things can be wrong:

*less*: tokens are computed that were said to be there. Now and then that is nobody's fault, since blocks
are evicted between the decision and the engine's step. Where it happens to half of the claims, the index is
not worth its word, whatever the reason, so the share of claims that hold is what it is trusted with.

*more*: tokens are there of which the index knows nothing. Prompts just like it that were sent a moment ago,
by this router or another, do that in bursts, and nobody is harmed; so it takes more answers and a larger
share, and lowers no trust. It is what an index shows that misses events, or prompts hashed in another way.

Answers that neither claim nor find anything prove nothing and are left out: cold prompts would hide an index
that is always wrong. Either alarm asks for the replica's content to be taken in anew, less and less often
while that does not help. It ends when fresh answers hold, or when for long none says anything.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kvstrata.routing.backlog import Pending
from kvstrata.routing.cost import Work
from kvstrata.routing.decision import Appraisal

TOLERANCE = 0.02
"""Share of a prompt by which cached tokens may differ without being called a disagreement."""
TOLERANCE_TOKENS = 64
MEMORY = 16
"""Answers that a share is made of, by and large."""
LESS = (8, 0.5, 0.2)
"""Answers it takes to call an index wrong, the share of them that must be so, and the share that ends it."""
MORE = (16, 0.8, 0.4)
CALM_ANSWERS = 4
"""Fresh answers that it takes to end an alarm."""
QUIET_SECONDS = 300.0
"""Without any answer that proves something, an alarm ends after so long."""
RESYNC_SECONDS, RESYNC_MOST = 30.0, 3600.0
"""Between two resyncs of one replica; doubled each time that the alarm outlives one."""
LEAST_TRUST = 0.1
_FADE = 0.05
MOST_REPLICAS = 4096


class Verdict(Enum):
    """How an answer's cached tokens stand to what was said of them."""

    AGREES = "agrees"
    LESS = "less"
    MORE = "more"


class Change(Enum):
    """What `Drift.look` found."""

    NONE = "none"
    RAISED = "raised"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Window:
    """Several answers of one replica, of which only sums are known.

    Attributes:
        least: tokens that were said to be there, at least.
        most: and at most.
        cached: that the engine counted.
        slack: by which they may differ.
        predicted: tokens that were foreseen not to be computed.
    """

    least: int
    most: int
    cached: int
    slack: float
    predicted: int


def slack_of(tokens: int) -> float:
    """Tokens by which a prompt of `tokens` may differ."""
    return max(TOLERANCE * tokens, TOLERANCE_TOKENS)


def claim_of(appraisal: Appraisal) -> tuple[int, int]:
    """Tokens of the prompt that were said to be there: at least, and at most.

    What is believed only because a request like it was just sent is no claim. An engine may resume
    beyond the boundary that was chosen for it, if it does not know how to stop there.
    """
    least = appraisal.tokens - appraisal.predicted_tokens
    reach = appraisal.reuse.storage.tokens if appraisal.reuse is not None else 0
    return least, max(appraisal.tokens, reach)


def judge(least: int, most: int, slack: float, cached: int) -> Verdict:
    """Whether `cached` tokens are from `least` to `most`, give or take `slack`."""
    if cached < least - slack:
        return Verdict.LESS
    return Verdict.MORE if cached > most + slack else Verdict.AGREES


def what_happened(pending: Pending, cached: int | None) -> Work | None:
    """What the replica really did for a request, to learn from.

    Args:
        pending: as it was foreseen.
        cached: tokens that the engine says it did not compute, or None.

    Returns:
        None where that is not known: a load that was foreseen and did not happen, or another one.
    """
    work = pending.work
    if cached is None:
        return work
    agrees = abs(cached - work.before) <= slack_of(pending.tokens)
    if not agrees and (work.memory_bytes or work.storage_bytes or cached > pending.device):
        # Bytes may have been moved of which nothing is known, or none although some were foreseen.
        return None
    cached = min(max(cached, 0), pending.tokens - 1)
    return Work(
        pending.tokens - cached,
        cached,
        work.memory_bytes,
        work.storage_bytes,
        work.wait,
        work.overlapped,
        work.unsure,
    )


class _Share:
    """Of the last answers, the share that are so; and how many there were since it began anew."""

    __slots__ = ("_hits", "_weight", "answers")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.answers = 0
        self._hits = self._weight = 0.0

    def add(self, hit: bool) -> None:
        kept = 1 - 1 / MEMORY
        self.answers += 1
        self._hits = self._hits * kept + hit
        self._weight = self._weight * kept + 1

    @property
    def value(self) -> float:
        return self._hits / self._weight if self._weight else 0.0

    @property
    def careful(self) -> float:
        """As if one more answer had been so, and one not: a half before there is any."""
        return (self._hits + 1) / (self._weight + 2)


class _Replica:
    __slots__ = (
        "agreed", "alarm", "bias", "cached", "heard", "less", "less_share", "more", "more_share",
        "next_resync", "pause", "predicted", "resyncs", "spread",
    )  # fmt: skip

    def __init__(self) -> None:
        self.agreed = self.less = self.more = 0
        self.predicted = self.cached = 0
        self.bias = self.spread = 0.0
        self.less_share, self.more_share = _Share(), _Share()
        self.alarm: Verdict | None = None
        self.heard = 0.0
        self.next_resync = -math.inf
        self.pause = RESYNC_SECONDS
        self.resyncs = 0

    def verdict(self) -> Verdict | None:
        """The alarm that the shares call for, given the one that there is."""
        for verdict, share, (answers, begins, ends) in (
            (Verdict.LESS, self.less_share, LESS),
            (Verdict.MORE, self.more_share, MORE),
        ):
            begun = self.alarm is verdict
            if share.answers < (CALM_ANSWERS if begun else answers):
                if begun:
                    return verdict
            elif share.value >= (ends if begun else begins):
                return verdict
        return None


class Drift:
    """Compares answers with what was foreseen, by replica. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}

    def note(
        self, appraisal: Appraisal, tokens: int, ttft: float | None, cached: int | None, now: float
    ) -> None:
        """Take in an answer.

        Args:
            appraisal: of the replica that gave it.
            tokens: of the prompt, counted.
            ttft: seconds to the first token, or None.
            cached: tokens that the engine says it did not compute, or None.
            now: when.
        """
        replica = self._replicas.setdefault(appraisal.replica, _Replica())
        while len(self._replicas) > MOST_REPLICAS:
            del self._replicas[next(iter(self._replicas))]
        foreseen = appraisal.terms.first_token
        if ttft is not None and foreseen > 0:
            error = math.log(max(ttft, 1e-6) / max(foreseen, 1e-6))
            replica.bias += _FADE * (error - replica.bias)
            replica.spread += _FADE * (abs(error) - replica.spread)
        if cached is None:
            return
        least, most = claim_of(appraisal)
        claims = appraisal.reuse is not None  # an approximate history makes none
        self._weigh(replica, (least, most, slack_of(tokens)), cached, now, claims=claims)
        replica.predicted += appraisal.tokens

    def note_sum(self, name: str, window: Window, now: float) -> None:
        """Take in several answers at once, of which only sums are known; they count as one."""
        replica = self._replicas.setdefault(name, _Replica())
        claim = window.least, window.most, window.slack
        self._weigh(replica, claim, window.cached, now, claims=True)
        replica.predicted += window.predicted

    @staticmethod
    def _weigh(
        replica: _Replica,
        claim: tuple[int, int, float],
        cached: int,
        now: float,
        *,
        claims: bool,
    ) -> None:
        least, most, slack = claim
        verdict = judge(least, most, slack, cached)
        replica.cached += cached
        replica.agreed += verdict is Verdict.AGREES
        replica.less += verdict is Verdict.LESS
        replica.more += verdict is Verdict.MORE
        if claims and least > slack:
            replica.less_share.add(verdict is Verdict.LESS)
            replica.heard = now
        if claims and cached > slack:
            replica.more_share.add(verdict is Verdict.MORE)
            replica.heard = now

    def look(self, name: str, now: float) -> Change:
        """Whether the replica's alarm begins or ends now."""
        replica = self._replicas.get(name)
        if replica is None:
            return Change.NONE
        before = replica.alarm
        if before is not None and now - replica.heard > QUIET_SECONDS:
            replica.less_share.clear()
            replica.more_share.clear()
            replica.alarm = None
        else:
            replica.alarm = replica.verdict()
        if (replica.alarm is None) is (before is None):
            return Change.NONE
        if replica.alarm is None:
            replica.pause = RESYNC_SECONDS
            return Change.CLEARED
        return Change.RAISED

    def alarm(self, name: str) -> Verdict | None:
        """What is wrong with the replica's index, or None."""
        replica = self._replicas.get(name)
        return replica.alarm if replica else None

    def resync_due(self, name: str, now: float) -> bool:
        """Whether its content should be taken in anew: alarmed on fresh answers, not too often."""
        replica = self._replicas.get(name)
        if replica is None or replica.alarm is None or now < replica.next_resync:
            return False
        less = replica.alarm is Verdict.LESS
        share, (answers, begins, _) = (
            (replica.less_share, LESS) if less else (replica.more_share, MORE)
        )
        return share.answers >= answers and share.value >= begins

    def resynced(self, name: str, now: float) -> None:
        """It is taken in anew: what was seen of the old content says nothing of the new one."""
        replica = self._replicas.setdefault(name, _Replica())
        replica.resyncs += 1
        replica.next_resync = now + replica.pause
        replica.pause = min(2 * replica.pause, RESYNC_MOST)
        replica.less_share.clear()
        replica.more_share.clear()
        replica.heard = now

    def trust(self, name: str) -> float:
        """Factor of the trust in its index, 0 to 1: the share of its claims that hold, if few do."""
        replica = self._replicas.get(name)
        if replica is None or replica.alarm is not Verdict.LESS:
            return 1.0
        return max(1 - replica.less_share.careful, LEAST_TRUST)

    def restarted(self, name: str) -> None:
        """The replica begins anew, and so does its index. What was counted stays."""
        replica = self._replicas.get(name)
        if replica is not None:
            replica.less_share.clear()
            replica.more_share.clear()
            replica.alarm = None

    def describe(self, name: str) -> dict[str, Any]:
        """Counts, shares, and the mean error of the first token's logarithm, signed and unsigned."""
        found = self._replicas.get(name) or _Replica()
        return {
            "cached_as_predicted": found.agreed,
            "cached_less": found.less,
            "cached_more": found.more,
            "predicted_tokens": found.predicted,
            "cached_tokens": found.cached,
            "disagreeing": max(found.less_share.value, found.more_share.value),
            "claims_broken": found.less_share.value,
            "finds_unforeseen": found.more_share.value,
            "ttft_bias": found.bias,
            "ttft_error": found.spread,
            "alarm": found.alarm is not None,
            "alarm_of": found.alarm.value if found.alarm else None,
            "resyncs": found.resyncs,
        }
