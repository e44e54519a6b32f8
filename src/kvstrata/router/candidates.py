"""Replicas as a policy compares them: with what the fleet's index says each holds of a prompt."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kvstrata.events.stream import Trust
from kvstrata.fleet.fleet import Fleet
from kvstrata.fleet.hashing import Recipe
from kvstrata.fleet.index import FleetIndex
from kvstrata.fleet.replica import Rank
from kvstrata.fleet.replica import Replica as Followed
from kvstrata.router.chooser import candidate
from kvstrata.router.reading import Read
from kvstrata.router.replicas import Replica
from kvstrata.routing.decision import Candidate, RequestView, Reuse
from kvstrata.routing.drift import Drift
from kvstrata.routing.fleet_reuse import FleetReuse, ReuseQuery
from kvstrata.routing.shape import ModelShape
from kvstrata.wire.snapshot import EngineFacts

BELIEVED = {Trust.SYNCED: 1.0, Trust.CATCHING_UP: 0.5, Trust.STALE: 0.25}
"""How much a policy trusts the index of a replica whose stream is so."""


@dataclass(eq=False, slots=True)
class _Model:
    """What follows from a replica's facts, made once for as long as these stay.

    Attributes:
        facts: of the engine.
        recipe: of its hashes.
        query: of its shape, one for all of that shape; None where that is not understood.
        resume_every: see `Candidate`.
    """

    facts: EngineFacts
    recipe: Recipe
    query: ReuseQuery | None
    resume_every: int


class Candidates:
    """Makes candidates of replicas. For one thread at a time.

    Args:
        fleet: what is followed.
        drift: how far each index's word has held.
    """

    def __init__(self, fleet: Fleet, drift: Drift) -> None:
        self._fleet = fleet
        self._drift = drift
        self._queries: dict[ModelShape, ReuseQuery] = {}
        self._models: dict[str, _Model] = {}

    def recipes(self) -> list[Recipe]:
        """How the followed engines make hashes, each recipe once."""
        found: list[Recipe] = []
        for replica in self._fleet.replicas:
            model = self._model(replica, replica.name)
            if model is not None and model.recipe not in found:
                found.append(model.recipe)
        return found

    def forget(self, replica: str) -> None:
        """It is not followed any more."""
        self._models.pop(replica, None)

    def of(
        self, view: RequestView, read: Read | None, replicas: Sequence[Replica]
    ) -> list[Candidate]:
        """The candidates for a request, in the order of `replicas`.

        Args:
            view: of the request.
            read: what is known of its prompt, or None.
            replicas: that could take it.
        """
        if read is None or view.tokens is None:
            return [candidate(replica) for replica in replicas]
        answers: dict[tuple[int, int], FleetReuse] = {}
        now = time.monotonic()
        with self._fleet.reading() as index:
            return [self._one(index, replica, view, read, answers, now) for replica in replicas]

    def _one(
        self,
        index: FleetIndex,
        replica: Replica,
        view: RequestView,
        read: Read,
        answers: dict[tuple[int, int], FleetReuse],
        now: float,
    ) -> Candidate:
        name = replica.name
        followed = self._followed(name)
        model = self._model(followed, name) if followed is not None else None
        if followed is None or model is None or model.query is None:
            return candidate(replica)
        hashes = read.hashes(name, model.recipe)
        reuse, detail = None, None
        if hashes is not None:
            answer = answers.get((id(model.query), id(hashes)))
            if answer is None:
                answer = model.query.ask(index, hashes, view.tokens or 0, load_cap=view.load_cap)
                answers[id(model.query), id(hashes)] = answer
            reuse, detail = _poorest(answer, followed.ranks)
        trust, age = self._fleet.standing(followed, now)
        load = replica.load
        return Candidate(
            name=name,
            waiting=0 if load is None else load.waiting,
            running=0 if load is None else load.running,
            in_flight=replica.in_flight,
            in_flight_tokens=replica.tokens,
            reuse=reuse,
            detail=detail,
            trust=BELIEVED[trust] * self._drift.trust(name),
            index_age=age,
            resume_every=model.resume_every,
        )

    def _followed(self, name: str) -> Followed | None:
        try:
            return self._fleet.replica(name)
        except KeyError:
            return None

    def _model(self, followed: Followed, name: str) -> _Model | None:
        """Of a replica that is followed; None while its engine's facts are not known."""
        facts = followed.ranks[0].told or followed.facts
        if facts is None:
            return None
        model = self._models.get(name)
        if model is not None and model.facts is facts:
            return model
        if model is not None and model.facts == facts:
            model.facts = facts  # told again, as with every snapshot
            return model
        query, recipe = self._query(facts), Recipe.of(facts)
        # One object for all that are equal is found without comparing what it holds.
        recipe = next((one.recipe for one in self._models.values() if one.recipe == recipe), recipe)
        windowed = query is not None and any(group.windowed for group in query.shape.groups)
        every = facts.retention_tokens if windowed else 1
        model = self._models[name] = _Model(facts, recipe, query, every)
        return model

    def _query(self, facts: EngineFacts) -> ReuseQuery | None:
        """The one for a shape, with its working memory."""
        try:
            shape = ModelShape.of(facts)
        except ValueError:
            return None
        found = self._queries.get(shape)
        if found is None:
            found = self._queries[shape] = ReuseQuery(shape)
        return found


def _poorest(answer: FleetReuse, ranks: Sequence[Rank]) -> tuple[Reuse, Callable[[], Reuse] | None]:
    """Which of its ranks takes a request is the engine's to say: what the poorest has is certain."""
    number = ranks[0].number
    reuse = answer.brief(number)
    for rank in ranks[1:]:
        other = answer.brief(rank.number)
        if other.storage.tokens < reuse.storage.tokens:
            number, reuse = rank.number, other
    # Where nothing is loaded, there is no more to tell.
    loads = reuse.storage is not reuse.device
    return reuse, partial(answer.of, number) if loads else None
