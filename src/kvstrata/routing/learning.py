"""Rates of every replica, learned from what requests took.

A rate is a stated figure times a factor. Factors are learned as logarithms, so that they stay positive and a
profile that is wrong a hundredfold is as near as one that is wrong by a hundredth. What is seen is the
logarithm of the seconds to the first token; its derivative by a factor's logarithm is the share of that
term in the prediction. So a request teaches what it was made of: a cold one the prefill, a load its
bandwidth, and a term that played no part learns nothing.

Each factor is the product of the fleet's and of the replica's own deviation. What any replica teaches moves
the fleet's first, so that a profile that is wrong everywhere is corrected for replicas that were never
tried; otherwise the first one that turned out better than stated would get everything.

The estimator is an extended Kalman filter, iterated because a wrong bandwidth is far from where the first
linearisation was made, with
- *outliers* bounded: a surprise counts for no more than `CLIP` standard deviations and in one linear step, so
  that one request in ten that met a pause cannot move much;
- *slow forgetting*: a deviation returns to the fleet's with the time constant `FORGET`, its uncertainty to
  where it began, and so a disk that was slow once is tried again;
- *change*: when `CHANGED` surprises in a row point the same way, it was no outlier, and the uncertainty is
  opened again;
- *noise as it is seen*: what no rate explains is taken from the surprises themselves, by their median, so
  that a difference between two replicas is believed as far as the scatter of times allows, and no further;
- *bounds*: no factor leaves [1 / `FURTHEST`, `FURTHEST`].

Fleet and deviation are kept as two 8 by 8 covariances without what couples them. Pure: no clock, no files.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from kvstrata.errors import ConfigError
from kvstrata.routing.cost import LEARNED, Profile, Vector, Work
from kvstrata.routing.engine_rates import Prefill
from kvstrata.routing.estimate import FURTHEST, Estimate, SavedEstimate

VERSION = 1
FORGET = 1800.0
"""Seconds after which a deviation that nothing confirms has lost two thirds."""
FORGET_FLEET = 7200.0
CLIP = 2.5
CHANGED = 4
NOISE = 0.3
"""Standard deviation of the logarithm of a first token's time that nothing explains, before any is seen."""
LEAST_NOISE, MOST_NOISE = 0.1, 1.0
NOISE_STEP = 1 / 64
"""By how much, in the logarithm, one surprise moves the noise at most, once many were seen."""
MEDIAN = 0.6745
"""Half of all surprises are smaller, in standard deviations."""
WAIT_NOISE = 0.5
"""The same of the part that was spent waiting: who comes and goes meanwhile is not foreseen."""
SMALLEST = 0.002
"""Seconds; standard deviation of what is measured."""
SHORTEST, LONGEST = 1e-4, 1e5
"""Seconds; what is said to take less or more counts as that."""
FLEET_SPREAD = 1.5
COMMON_SPREAD = 0.25
OWN_SPREAD = 0.2
"""Standard deviations, at the beginning, of the logarithms: of a term in the whole fleet, of a replica's
terms all together, and of one of them by itself. Replicas are mostly alike, and one that is slow is mostly
slow in all it does: so a few requests tell it, and their scatter does not make equal ones look different."""
WAIT_SPREAD = 0.3
OWN_WAIT_SPREAD = 0.1
"""The same of the wait, whose seconds are made of rates that are learned already. What is amiss with one is
mostly the time that the prompt in front has left, which no factor of all waits mends: one that took ten times
as long as a residue of milliseconds would make every queue ten times as long."""
ROUNDS = 6
SETTLED = 1e-3
"""Change of the innovation after which another linearisation would change nothing."""
MOST_REPLICAS = 4096
LEAST_TOLD = 128
"""Tokens of an engine's mean prompt below which its seconds are overhead, and say nothing of its rates."""

_NONE: Vector = np.zeros(len(LEARNED))
_FLEET: Vector = np.diag([FLEET_SPREAD**2] * (len(LEARNED) - 1) + [WAIT_SPREAD**2])
_OWN: Vector = np.diag([OWN_SPREAD**2] * (len(LEARNED) - 1) + [OWN_WAIT_SPREAD**2])
_OWN[:-1, :-1] += COMMON_SPREAD**2


class Learned(msgspec.Struct, frozen=True):
    """What was learned of one term.

    Attributes:
        factor: of the stated rate.
        spread: standard deviation of its logarithm.
    """

    factor: float
    spread: float


class Learner:
    """Learns the rates of a fleet's replicas that share one stated profile.

    Args:
        profile: what is stated.
        stated: profiles of replicas that differ from it, by name.
    """

    def __init__(self, profile: Profile, stated: Mapping[str, Profile] | None = None) -> None:
        self.profile = profile
        self._stated = dict(stated or {})
        self._usual = profile.rates()
        self._special = {name: one.rates() for name, one in self._stated.items()}
        self._fleet = Estimate(_FLEET, 0.0)
        self._noise = NOISE
        self._own: dict[str, Estimate] = {}
        self._rows: dict[str, int] = {}
        self._stated_rows: Vector = np.empty((0, len(LEARNED)))
        self._own_rows: Vector = np.empty((0, len(LEARNED)))
        self._believed: Vector | None = None

    def profile_of(self, replica: str) -> Profile:
        """What is stated of a replica."""
        return self._stated.get(replica, self.profile)

    def rates(self, replica: str) -> tuple[float, ...]:
        """Seconds per unit as they are believed now, in the order of `LEARNED`."""
        return tuple(self.rates_of([replica])[0].tolist())

    def rates_of(self, replicas: Sequence[str]) -> Vector:
        """The same of several: float64 (replicas, 8)."""
        try:
            places = [self._rows[one] for one in replicas]
        except KeyError:
            self._make_rows(replicas)
            places = [self._rows[one] for one in replicas]
        if self._believed is None:
            self._believed = self._stated_rows * _factors(self._fleet.mean + self._own_rows)
        return self._believed[places]

    def learn(self, replica: str, work: Work, seconds: float, now: float) -> None:
        """A request that made a replica do `work` had its first token after `seconds`.

        Args:
            replica: its name.
            work: as it really was: with the cached tokens that the engine reported.
            seconds: from sending to the first token; passed over unless above 0 and finite.
            now: seconds of the same clock as always.
        """
        if not (math.isfinite(seconds) and seconds > 0):
            return
        seconds = min(max(seconds, SHORTEST), LONGEST)
        own = self._own.get(replica)
        if own is None:
            own = self._own[replica] = Estimate(_OWN, now)
            while len(self._own) > MOST_REPLICAS:
                self.forget(next(iter(self._own)))
        fleet = self._fleet
        fleet.forget(now, FORGET_FLEET)
        own.forget(now, FORGET)
        stated = np.array(self._stated_rates(replica)) * np.array(work.units())
        if work.overlapped:
            # What the wait hid was never seen, so that it teaches nothing.
            reads = float(np.dot(self.rates(replica)[5:7], work.units()[5:7]))
            stated[5:7] *= max(reads - work.overlapped, 0.0) / reads if reads else 1.0
        surprise = self._update(fleet, own, stated, seconds, work.unsure)
        fleet.count += 1
        own.count += 1
        if abs(surprise) <= CLIP:
            own.run = 0
        else:
            own.outliers += 1
            direction = 1 if surprise > 0 else -1
            own.run = own.run + direction if own.run * direction > 0 else direction
            if abs(own.run) >= CHANGED:
                own.changes += 1
                own.run = 0
                own.widen()
        self._believed = None
        if replica in self._rows:
            self._own_rows[self._rows[replica]] = own.mean

    def begin(self, replica: str, prefill: Prefill, now: float) -> None:
        """What a replica of which nothing is known computed for others counts as one answer.

        Without it the first burst would be spread as the stated profile has it, which may be wrong tenfold.

        Args:
            replica: its name; one that was learned of already is passed over.
            prefill: of its engine, since that began.
            now: seconds of the same clock as always.
        """
        left = prefill.tokens // max(prefill.requests, 1)
        if replica not in self._own and left >= LEAST_TOLD:
            self.learn(replica, Work(left, 0), prefill.seconds / prefill.requests, now)

    def forget(self, replica: str) -> None:
        """The replica is gone for good."""
        self._own.pop(replica, None)
        self._rows.clear()

    def learned(self, replica: str) -> dict[str, Learned]:
        """By term: the factor of the stated rate, and how sure it is."""
        own = self._own.get(replica) or Estimate(_OWN, 0.0)
        spread = np.sqrt(np.diag(self._fleet.covariance) + np.diag(own.covariance))
        factors = _factors(self._fleet.mean + own.mean)
        return {
            name: Learned(float(factor), float(deviation))
            for name, factor, deviation in zip(LEARNED, factors, spread, strict=True)
        }

    def replicas(self) -> list[str]:
        """Those of which something was learned."""
        return list(self._own)

    def describe(self, replica: str) -> dict[str, Any]:
        """What is believed of a replica, in units that people use."""
        rates = self.rates(replica)
        own = self._own.get(replica)
        return {
            "overhead_seconds": rates[0],
            "prefill_tokens_per_s": 1 / rates[1],
            "attention_doubles_at": 2 * rates[1] / rates[2],
            "memory_latency_seconds": rates[3],
            "memory_bytes_per_s": 1 / rates[4],
            "storage_latency_seconds": rates[5],
            "storage_bytes_per_s": 1 / rates[6],
            "wait_factor": rates[7],
            "noise": self._noise,
            "factors": {n: [one.factor, one.spread] for n, one in self.learned(replica).items()},
            "requests": own.count if own else 0,
            "outliers": own.outliers if own else 0,
            "changes": own.changes if own else 0,
        }

    def to_bytes(self, now: float) -> bytes:
        """All that was learned, for a file. Ages are kept instead of times: the clock may begin anew."""
        return msgspec.json.encode(
            _Saved(
                VERSION,
                LEARNED,
                self._fleet.save(now),
                {n: e.save(now) for n, e in self._own.items()},
                self._noise,
            )
        )

    def restore(self, data: bytes, now: float) -> None:
        """Go on with what another life learned; replicas that the file does not name stay as they are.

        Raises:
            ConfigError: the bytes are not what `to_bytes` writes; nothing has changed then.
        """
        try:
            saved = msgspec.json.decode(data, type=_Saved)
            if saved.version != VERSION or tuple(saved.terms) != LEARNED:
                raise ValueError(f"version {saved.version} with the terms {', '.join(saved.terms)}")
            if len(saved.replicas) > MOST_REPLICAS:
                raise ValueError(f"{len(saved.replicas)} replicas")
            if not LEAST_NOISE <= saved.noise <= MOST_NOISE:
                raise ValueError(f"a noise of {saved.noise}")
            fleet = Estimate.load(saved.fleet, _FLEET, now)
            own = {name: Estimate.load(one, _OWN, now) for name, one in saved.replicas.items()}
        except (ValueError, msgspec.DecodeError, RecursionError) as error:
            raise ConfigError(
                f"what was learned of the replicas cannot be read ({error}); remove the file and it "
                "will be learned again"
            ) from None
        self._fleet, self._noise = fleet, saved.noise
        self._own.update(own)
        self._rows.clear()

    def _make_rows(self, replicas: Sequence[str]) -> None:
        """Room for replicas that are asked about for the first time, beside those that were."""
        kept = self._rows if len(self._rows) < MOST_REPLICAS else {}
        names = list(dict.fromkeys([*kept, *self._own, *replicas]))
        means = [own.mean if (own := self._own.get(one)) else _NONE for one in names]
        self._rows = {name: row for row, name in enumerate(names)}
        self._stated_rows = np.array([self._stated_rates(one) for one in names])
        self._own_rows = np.array(means)
        self._believed = None

    def _stated_rates(self, replica: str) -> tuple[float, ...]:
        return self._special.get(replica, self._usual)

    def _update(
        self, fleet: Estimate, own: Estimate, stated: Vector, seconds: float, unsure: float
    ) -> float:
        """Move both estimates; returns the surprise in standard deviations, before any bound."""
        limit = math.log(FURTHEST)
        prior_fleet, prior_own = fleet.mean.copy(), own.mean.copy()
        surprise, unexplained, moved_to = 0.0, 0.0, math.inf
        for turn in range(ROUNDS):
            parts = stated * _factors(fleet.mean + own.mean)
            predicted = float(parts.sum())
            share = parts / predicted
            noise = self._noise + WAIT_NOISE * (float(share[-1]) + unsure / predicted)
            noise += SMALLEST / min(predicted, seconds)
            by_fleet, by_own = fleet.covariance @ share, own.covariance @ share
            unknown = float(share @ by_fleet)
            # While the fleet's own figure is open, what one replica shows is not taken for its peculiarity:
            # the first one seen would look better, or worse, than all others.
            by_own *= _OWN[0, 0] / (_OWN[0, 0] + unknown)
            variance = unknown + float(share @ by_own) + noise**2
            moved = float(share @ (prior_fleet - fleet.mean + prior_own - own.mean))
            # Linearised where the last round ended, but measured from where this observation began.
            innovation = math.log(seconds / predicted) - moved
            if turn == 0:
                surprise = innovation / math.sqrt(variance)
                unexplained = self._noise**2 / variance
            if abs(surprise) > CLIP:
                innovation *= CLIP / abs(surprise)
            step = innovation / variance
            while True:
                fleet.mean = np.clip(prior_fleet + by_fleet * step, -limit, limit)
                own.mean = np.clip(prior_own + by_own * step, -limit, limit)
                if abs(surprise) <= CLIP:
                    break
                # Terms that only their sum is known of can move far in opposite directions, and then the sum
                # follows the one that grows. What is bounded must stay so.
                then = float((stated * _factors(fleet.mean + own.mean)).sum())
                if abs(math.log(then / predicted)) <= abs(innovation):
                    break
                step /= 2
            # Past the bound, another linearisation would look for what explains an outlier best.
            if abs(surprise) > CLIP or abs(innovation - moved_to) < SETTLED:
                break
            moved_to = innovation
        fleet.covariance = fleet.covariance - np.outer(by_fleet, by_fleet) / variance
        own.covariance = own.covariance - np.outer(by_own, by_own) / variance
        self._scatter(abs(surprise), unexplained, fleet.count)
        return surprise

    def _scatter(self, surprise: float, unexplained: float, seen: int) -> None:
        """Let the noise become what makes half of the surprises larger than their median should be.

        How large one is does not count, so that outliers move it by no more than others; and one by which
        rates were unsure says as little of the noise as its share in what could be expected.
        """
        step = max(1 / (seen + 8), NOISE_STEP) * unexplained
        noise = self._noise * math.exp(step if surprise > MEDIAN else -step)
        self._noise = min(max(noise, LEAST_NOISE), MOST_NOISE)


def _factors(logs: Vector) -> Vector:
    """Of logarithms, within bounds."""
    found: Vector = np.exp(np.clip(logs, -math.log(FURTHEST), math.log(FURTHEST)))
    return found


class _Saved(msgspec.Struct):
    version: int
    terms: tuple[str, ...]
    fleet: SavedEstimate
    replicas: dict[str, SavedEstimate]
    noise: float = NOISE
