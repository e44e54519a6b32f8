"""Choosing by what the fleet's index says each replica holds of the request's prompt."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kvstrata.errors import ConfigError
from kvstrata.events.stream import Trust
from kvstrata.fleet import replica as followed
from kvstrata.fleet.discovery import discover, infos
from kvstrata.fleet.fleet import Fleet
from kvstrata.fleet.hashing import Recipe
from kvstrata.router.asking import Asked
from kvstrata.router.candidates import Candidates
from kvstrata.router.chooser import PolicyChooser, Result
from kvstrata.router.index_state import IndexState, index_state
from kvstrata.router.preparing import warm
from kvstrata.router.reading import Read, Reading, reading_of
from kvstrata.router.replicas import Replica
from kvstrata.routing.decision import Decision, Policy, RequestView
from kvstrata.routing.drift import Change, Verdict
from kvstrata.routing.totals import Totals, read_counters

log = logging.getLogger(__name__)

UNKNOWN = Recipe.default(16)
"""How prompts are told apart while no engine says how it does."""

BY_PROMPT = ("seconds", "tier-weighted", "approximate-prefix")
"""Policies that ask what a request's prompt is."""
_NOT_STARTED = "the index is not compiled yet"
_WRONG = {
    Verdict.LESS: "it computes tokens that its index says it holds",
    Verdict.MORE: "it holds tokens of which its index knows nothing (were its prompts hashed otherwise, such "
    "as by another tokenizer or chat template?)",
}


class PromptView(RequestView, frozen=True, kw_only=True, gc=False):
    """A request whose prompt was looked at.

    Attributes:
        read: what is known of the prompt.
    """

    read: Read


class FleetChooser(PolicyChooser):
    """A policy that knows what is where. A choice is one look at the index, from the loop.

    Args:
        policy: chooses.
        fleet: what is followed.
        reading: makes token ids of requests, and block hashes of those.
    """

    def __init__(self, policy: Policy, fleet: Fleet, reading: Reading) -> None:
        super().__init__(policy)
        self._fleet = fleet
        self._reading = reading
        self._candidates = Candidates(fleet, self._drift)
        self._addresses: dict[str, followed.Address] = {}
        self._silent: dict[str, str] = {}
        self._totals = Totals()
        self._started = False

    def start(self) -> None:
        """Follow engines' events, in a thread; until then requests are chosen for by load.

        Not for the loop's thread: it brings compiled code, see `preparing`.
        """
        warm()
        self._fleet.start()
        self._started = True

    def close(self) -> None:
        """No more requests."""
        self._reading.close()
        self._fleet.stop()

    # Whom to follow.

    def metrics(self, replica: Replica, text: bytes) -> None:
        """An engine's metrics were read: they say where its events are, and how fast it was."""
        super().metrics(replica, text)
        self._reading.saw(replica)
        if not self._started:
            return
        try:
            told = infos(text.decode(errors="replace"))
            address = discover(replica.name, replica.config.url, told)
            if self._addresses.get(replica.name) != address:
                self._unfollow(replica.name)
                self._fleet.add(address)
                self._addresses[replica.name] = address
                self._silent.pop(replica.name, None)
        except (ConfigError, ValueError) as error:
            # The policy goes by what it sent there.
            if self._silent.get(replica.name) != str(error):
                log.warning("the events of %s are not followed: %s", replica.name, error)
                self._silent[replica.name] = str(error)
        now = time.monotonic()
        self._count(replica, text, now)
        self._look(replica.name, now)

    def _count(self, replica: Replica, text: bytes, now: float) -> None:
        """Where answers do not tell what was cached, the engine's counters do, when it is at rest."""
        load = replica.load
        if replica.in_flight or load is None or load.running or load.waiting:
            return
        counted = read_counters(text)
        window = None if counted is None else self._totals.quiet(replica.name, counted)
        if window is not None:
            self._drift.note_sum(replica.name, window, now)

    def _look(self, replica: str, now: float) -> None:
        """Say when a replica's index goes wrong or right, and have it made anew where that is due."""
        match self._drift.look(replica, now):
            case Change.RAISED:
                what = self._drift.alarm(replica)
                assert what is not None
                log.warning("the index of %s is not believed: %s", replica, _WRONG[what])
            case Change.CLEARED:
                log.warning("the index of %s is believed again", replica)
        if self._drift.resync_due(replica, now) and replica in self._addresses:
            address = self._addresses[replica]
            self._fleet.remove(replica)
            self._fleet.add(address)
            self._drift.resynced(replica, now)

    def forget(self, replica: str) -> None:
        """See `Chooser`; one that comes back is followed anew."""
        super().forget(replica)
        self._reading.forget(replica)
        self._drift.restarted(replica)
        self._totals.forget(replica)
        self._silent.pop(replica, None)
        self._unfollow(replica)

    def _unfollow(self, replica: str) -> None:
        self._candidates.forget(replica)
        if self._addresses.pop(replica, None) is not None:
            self._fleet.remove(replica)

    # Requests.

    async def view(self, asked: Asked) -> RequestView:
        """See `Chooser`."""
        if not self._started:
            unread = await super().view(asked)
            told: RequestView = msgspec.structs.replace(unread, doubt=_NOT_STARTED)
            return told
        read = await self._reading.read(asked, self._candidates.recipes() or [UNKNOWN])
        prompt = read.prompt
        some = read.some()
        return PromptView(
            id=asked.id,
            tokens=None if prompt.tokens is None else len(prompt.tokens),
            prefix=None if some is None else some[0],
            prefix_tokens=16 if some is None else some[1],
            session=asked.session,
            model=asked.fields.model or "",
            arrival=asked.request.arrived,
            doubt=prompt.doubt,
            read=read,
        )

    def choose(self, view: RequestView, replicas: Sequence[Replica], now: float) -> Decision:
        """See `Chooser`."""
        read = view.read if isinstance(view, PromptView) else None
        return self._policy.decide(view, self._candidates.of(view, read, replicas), now)

    def observed(self, result: Result, view: RequestView, decision: Decision, now: float) -> None:
        """See `Chooser`."""
        super().observed(result, view, decision, now)
        told = result.cached_tokens is not None
        if view.tokens is None or result.status != 200 or result.failed or told:
            self._totals.spoil(result.replica)
        else:
            self._totals.answered(decision.appraisal, view.tokens)
        self._look(result.replica, now)

    def index_of(self, replica: str, now: float) -> IndexState | None:
        """See `Chooser`."""
        if replica in self._addresses:
            return index_state(self._fleet, replica, now)
        why = self._silent.get(replica, "its metrics have not been read yet")
        return IndexState(Trust.STALE.value, why)

    def describe(self, now: float) -> Mapping[str, Any]:
        """See `Chooser`."""
        return {**super().describe(now), "fleet": self._fleet.as_dict()}


def follow(policy: Policy, tokenizer: str | None) -> FleetChooser:
    """A chooser over a fleet of its own.

    Args:
        policy: chooses.
        tokenizer: see `reading_of`.

    Raises:
        ConfigError: the files cannot be read.
    """
    return FleetChooser(policy, Fleet(), reading_of(tokenizer))
