"""Our policy: each request goes where its first token comes soonest.

A replica's score is the price of its best way to resume (`routing.pricing`), in seconds as they were learned
(`routing.learning`), behind what was sent there before (`routing.backlog`). To that come
- *doubt*: an index that may be wrong costs what its error would, times how likely it is;
- *fault*: replicas that failed lately are avoided for some seconds, so that one which fails fast does not
  draw all requests by its short queue;
- *burden*: what a request computes, others wait for. A second of computation behind a wait of W delays all
  who arrive until the queue is empty again: of those there are some rate * W / (1 - load). So much is added
  for each second, or greed would copy hot prefixes everywhere, and compute what could be loaded, at the cost
  of all.

Scores that differ by less than the model can tell are ties. A conversation then stays where it was, which
keeps it from flapping; everything else goes where the fewest new tokens were placed lately, so that cold
prompts spread over the fleet's caches, and what is left is drawn by the request's id, the same each time.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from kvstrata.routing.appraising import appraise, tried
from kvstrata.routing.backlog import Backlog, Pending
from kvstrata.routing.cost import Profile, Vector, Work
from kvstrata.routing.decision import (
    Appraisal,
    Appraisals,
    Candidate,
    Decision,
    NoCandidatesError,
    Outcome,
    RequestView,
)
from kvstrata.routing.drift import what_happened
from kvstrata.routing.engine_rates import Prefill
from kvstrata.routing.history import History
from kvstrata.routing.learning import Learner
from kvstrata.routing.picking import pick
from kvstrata.routing.pricing import Standing, price_each
from kvstrata.routing.probing import Probes
from kvstrata.routing.recent import Decayed, Typical
from kvstrata.routing.simple import REMEMBERED_SECONDS, REMEMBERED_TRUST

PROBE = "probe"
SETTLE = 3.0
"""Seconds after its first token by which a prompt's events must have come."""
UNSETTLED = 30.0
"""Seconds beyond twice the foreseen first token for which a prompt counts that nothing is heard of."""
PRESSURE_WINDOW = 30.0
FULLEST = 0.9
MOST_CROWD = 4.0
"""A second of computation counts as no more than five, so that an overload is not fought by reads alone."""
PLACED_WINDOW = 600.0
FAULT_SECONDS = 0.5
FAULT_MOST = 30.0
FAULT_WINDOW = 20.0
OVERDUE_INTERVAL = 0.25
MOST_SESSIONS = 65_536


class Seconds:
    """See the module.

    Args:
        profile: what is stated of every replica.
        stated: profiles of replicas that differ from it, by name.
        burden: weight of what others wait for; 0 to be greedy.
    """

    name = "seconds"

    def __init__(
        self,
        profile: Profile | None = None,
        stated: Mapping[str, Profile] | None = None,
        burden: float = 1.0,
    ) -> None:
        self.learner = Learner(profile or Profile(), stated)
        self._burden = burden
        self._backlog = Backlog()
        self._predicted = History()
        self._remembered = History()
        self._probes = Probes()
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._placed = Decayed(PLACED_WINDOW)
        self._faults = Decayed(FAULT_WINDOW)
        self._busy = Decayed(PRESSURE_WINDOW)
        self._arrivals = Decayed(PRESSURE_WINDOW)
        self._next_look = -math.inf
        self._tokens = Typical(512.0)
        self._compute = Typical(0.05)
        self._duration = Typical(1.0)

    def decide(self, request: RequestView, candidates: Sequence[Candidate], now: float) -> Decision:
        """See `Policy`."""
        if not candidates:
            raise NoCandidatesError("no replica to choose from")
        tokens = max(request.tokens if request.tokens is not None else int(self._tokens.mean), 1)
        crowding = self._crowding(len(candidates), now)
        names = [one.name for one in candidates]
        rates = self.learner.rates_of(names)
        standings = self._standings(request, candidates, rates, crowding, now)
        prices = price_each(standings, rates, tokens, request.load_cap)

        def standing(place: int) -> Standing:
            return Standing(*standings[place], *rates[place].tolist())

        appraisals = Appraisals(
            names,
            lambda place: appraise(candidates[place], standing(place), prices.at(place)),
        )
        before = self._sessions.get(request.session) if request.session is not None else None
        place, second, reason = pick(request.id, names, prices, before, self._placed, now)
        chosen = appraisals[place]
        probe = self._probe(request, chosen, standing(place), tokens, now)
        if probe is not None:
            appraisals, chosen, reason = appraisals.replaced(probe), probe, PROBE
        return Decision(
            id=request.id,
            policy=self.name,
            chosen=chosen.replica,
            reason=reason,
            runner_up=None if second is None else names[second],
            load_cap=chosen.load_cap,
            at=now,
            appraisals=appraisals,
            tokens=tokens,
        )

    def sent(self, request: RequestView, decision: Decision, now: float) -> None:
        """See `Policy`."""
        chosen = decision.appraisal
        replica, terms = chosen.replica, chosen.terms
        compute = terms.compute + terms.attention + terms.overhead
        loading = terms.first_token - terms.wait - compute
        rates = self.learner.rates(replica)
        work = Work(
            decision.tokens - chosen.tokens,
            chosen.tokens,
            chosen.memory_bytes,
            chosen.storage_bytes,
            terms.wait / rates[-1],
            terms.overlap,
            self._backlog.under_way(replica, now, rates) if terms.wait else 0.0,
        )
        self._learn_overdue(now)
        self._probes.used(chosen.source, now)
        self._backlog.add(
            Pending(
                id=request.id,
                replica=replica,
                at=now,
                work=work,
                loading=max(loading, 0.0),
                reading=terms.storage_latency + terms.storage_transfer,
                tokens=decision.tokens,
                device=chosen.device_tokens,
                foreseen=terms.first_token,
                sure=request.tokens is not None,
                probe=chosen.source if decision.reason == PROBE else "",
            )
        )
        if request.prefix is not None and len(request.prefix):
            until = now + 2 * terms.first_token + UNSETTLED
            self._predicted.add(request.id, replica, request.prefix, now, until)
            if chosen.reuse is None:
                until = now + REMEMBERED_SECONDS
                self._remembered.add(request.id, replica, request.prefix, now, until)
        if request.session is not None:
            self._sessions[request.session] = replica
            self._sessions.move_to_end(request.session)
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        if request.tokens is not None:
            self._tokens.add(request.tokens)
        self._compute.add(compute)
        self._busy.add("", compute, now)
        self._arrivals.add("", 1.0, now)
        self._placed.add(replica, work.left, now)

    def observed(self, outcome: Outcome, now: float) -> None:
        """See `Policy`."""
        pending = self._backlog.get(outcome.id)
        if pending is None or pending.replica != outcome.replica:
            return
        if outcome.failed:
            self._faults.add(outcome.replica, 1.0, now)
            self._predicted.drop(outcome.id)
            self._remembered.drop(outcome.id)
            self._backlog.remove(outcome.id, now)
            return
        if outcome.ttft is not None and not pending.first_token:
            pending.ttft = outcome.ttft
            self._backlog.computed(outcome.id, now)
            self._predicted.settle(outcome.id, now, now + SETTLE)
            self._faults.clear(outcome.replica)
        if not outcome.final:
            return
        self._backlog.remove(outcome.id, now)
        self._duration.add(now - pending.at)
        if pending.ttft is None:
            # Nobody knows how far it came.
            self._predicted.drop(outcome.id)
            return
        work = what_happened(pending, outcome.cached_tokens)
        if pending.probe:
            actual = pending.ttft if work is not None else None
            self._probes.told(pending.probe, pending.foreseen, actual, now)
        if work is not None and pending.sure:
            self.learner.learn(pending.replica, work, pending.ttft, now)

    def told(self, replica: str, prefill: Prefill, now: float) -> None:
        """See `Policy` and `Learner.begin`."""
        self.learner.begin(replica, prefill, now)

    def forget(self, replica: str) -> None:
        """See `Policy`. What was learned of its speed is kept: a restart does not change the hardware."""
        self._backlog.forget(replica)
        self._predicted.forget(replica)
        self._remembered.forget(replica)
        self._placed.clear(replica)
        self._faults.clear(replica)
        for session in [one for one, where in self._sessions.items() if where == replica]:
            del self._sessions[session]

    def describe(self, now: float) -> Mapping[str, Any]:
        """See `Policy`."""
        replicas = sorted({*self._placed.names(), *self.learner.replicas()})
        return {
            "policy": self.name,
            "pending": len(self._backlog),
            "predicted_prompts": len(self._predicted),
            "remembered_prompts": len(self._remembered),
            "typical_tokens": self._tokens.mean,
            "busy_seconds_per_second": self._busy.rate("", now),
            "replicas": {
                name: {
                    **self.learner.describe(name),
                    "wait_seconds": self._backlog.wait(name, now, self.learner.rates(name)),
                    "placed_tokens": self._placed.value(name, now),
                    "faults": self._faults.value(name, now),
                }
                for name in replicas
            },
        }

    def save(self, now: float) -> bytes:
        """What was learned, for a file."""
        return self.learner.to_bytes(now)

    def restore(self, data: bytes, now: float) -> None:
        """Go on with what `save` wrote.

        Raises:
            ConfigError: it did not write that; nothing has changed then.
        """
        self.learner.restore(data, now)

    def _learn_overdue(self, now: float) -> None:
        """What has not come yet is known to take at least as long.

        A load that takes a minute instead of a second would be chosen for all that minute otherwise.
        """
        if now < self._next_look:
            return
        self._next_look = now + OVERDUE_INTERVAL
        for pending in self._backlog.overdue(now):
            if pending.sure:
                self.learner.learn(pending.replica, pending.work, now - pending.at, now)

    def _crowding(self, replicas: int, now: float) -> float:
        """Requests that are delayed for each second that a replica's queue is long."""
        load = min(self._busy.rate("", now) / replicas, FULLEST)
        return self._burden * self._arrivals.rate("", now) / replicas / (1 - load)

    def _standings(
        self,
        request: RequestView,
        candidates: Sequence[Candidate],
        rates: Vector,
        crowding: float,
        now: float,
    ) -> list[tuple[float, ...]]:
        """For each candidate the figures of `Standing` before the rates."""
        known = _Known(self, request, now)
        usual, failing = self._compute.mean, set(self._faults.names())
        found: list[tuple[float, ...]] = []
        for one, believed in zip(candidates, rates.tolist(), strict=True):
            name, reuse = one.name, one.reuse
            wait, unanswered, reads_until = self._backlog.look(name, now, believed)
            if one.waiting > unanswered:
                wait += (one.waiting - unanswered) * usual
            if one.capacity and one.in_flight >= one.capacity:
                ahead = one.in_flight - one.capacity + 1
                wait = max(wait, ahead * self._duration.mean / one.capacity)
            overlapped = read_wait = 0.0
            if wait:
                overlapped = self.learner.profile_of(name).overlap * wait * believed[-1]
            if reads_until > now + wait:
                read_wait = reads_until - now - wait
            crowd = crowding * (wait + usual)
            if crowd > MOST_CROWD:
                crowd = MOST_CROWD
            fault = self._fault(name, now) if name in failing else 0.0
            guessed = known.tokens(one)
            if reuse is None:
                state = wait, REMEMBERED_TRUST, fault, crowd, read_wait, overlapped
                found.append((*state, guessed, 0, 0, 0, 0, 0, 0))
                continue
            indexed, memory, storage = reuse.device.tokens, reuse.memory, reuse.storage
            found.append(
                (
                    wait,
                    one.trust,
                    fault,
                    crowd,
                    read_wait,
                    overlapped,
                    guessed if guessed > indexed else indexed,
                    indexed,
                    memory.tokens,
                    storage.tokens,
                    memory.memory_bytes,
                    storage.memory_bytes,
                    storage.storage_bytes,
                )
            )
        return found

    def _fault(self, replica: str, now: float) -> float:
        faults = self._faults.value(replica, now)
        return min(FAULT_SECONDS * (math.pow(2.0, min(faults, 16.0)) - 1), FAULT_MOST)

    def _probe(
        self, request: RequestView, chosen: Appraisal, here: Standing, tokens: int, now: float
    ) -> Appraisal | None:
        """The chosen replica, but with a small load from a tier that was avoided for long."""
        if request.load_cap is not None:
            return None
        way = self._probes.way(
            chosen.reuse, here, chosen.device_tokens, chosen.tokens, tokens - 1, now
        )
        return None if way is None else tried(chosen, here, way, tokens)


class _Known:
    """What was sent where of one prompt's beginning, asked only if a candidate needs it."""

    def __init__(self, policy: Seconds, request: RequestView, now: float) -> None:
        self._policy = policy
        self._request = request
        self._now = now
        self._found: dict[tuple[bool, int], Mapping[str, int]] = {}

    def tokens(self, candidate: Candidate) -> int:
        """Tokens that the candidate is believed to hold although its index does not say so."""
        silent = candidate.reuse is None
        kind = silent, candidate.resume_every
        found = self._found.get(kind)
        if found is None:
            found = self._found[kind] = self._ask(*kind)
        return found.get(candidate.name, 0) * self._request.prefix_tokens if found else 0

    def _ask(self, silent: bool, resume_every: int) -> Mapping[str, int]:
        prefix = self._request.prefix
        if prefix is None:
            return {}
        history = self._policy._remembered if silent else self._policy._predicted
        # A place between two hashes is none.
        every = -(-resume_every // self._request.prefix_tokens)
        return history.match(prefix, self._now, every=every)
