"""The ledger remembers what was decided and what came of it, within its bounds."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstrata.router.ledger import Ending, Ledger, Record
from kvstrata.router.sources import Sources, sources_of
from kvstrata.routing.decision import Appraisal, Appraisals, Decision, Reach, Reuse


def record(identity: str, candidates: int = 3, chosen: int = 0) -> Record:
    considered = tuple(Appraisal(replica=f"r{n}", score=float(n)) for n in range(candidates))
    decision = Decision(
        id=identity,
        policy="seconds",
        chosen=f"r{chosen}",
        reason="time",
        runner_up="r1" if candidates > 1 else None,
        load_cap=None,
        at=1.0,
        appraisals=Appraisals.of(considered),
        tokens=100,
    )
    return Record(decision, 1000.0, "/v1/completions", "tiny")


def ending(replica: str, status: int = 200, **more) -> Ending:
    return Ending(replica, status, 0.1, 0.5, None, status != 200, **more)


def test_what_is_told_of_a_decision() -> None:
    ledger = Ledger()
    ledger.decided(record("x", candidates=2))
    told = msgspec.json.decode(msgspec.json.encode(ledger.get("x").as_dict()))  # type: ignore[union-attr]
    assert told["outcome"] is None and told["earlier"] == []
    assert [told[key] for key in ("id", "at", "path", "model", "policy", "reason", "chosen")] == [
        "x", 1000.0, "/v1/completions", "tiny", "seconds", "time", "r0"
    ]  # fmt: skip
    assert [one["replica"] for one in told["considered"]] == ["r0", "r1"]
    assert told["considered"][0]["terms"]["wait"] == 0.0
    ledger.ended("x", ending("r0"))
    assert ledger.get("x").as_dict()["outcome"] == {  # type: ignore[union-attr]
        "replica": "r0", "status": 200, "ttft": 0.1, "seconds": 0.5, "cached_tokens": None,
        "failed": False, "streamed": False, "tries": 1,
    }  # fmt: skip


def test_tries_add_up() -> None:
    ledger = Ledger()
    for number, status in enumerate((0, 503, 200)):
        ledger.decided(record("x", chosen=number))
        assert ledger.get("x").ending is None  # type: ignore[union-attr]
        ledger.ended("x", ending(f"r{number}", status))
    told = ledger.get("x").as_dict()  # type: ignore[union-attr]
    assert (told["outcome"]["tries"], told["outcome"]["replica"]) == (3, "r2")
    assert [(one["replica"], one["status"]) for one in told["earlier"]] == [("r0", 0), ("r1", 503)]
    assert len(ledger) == 1


def test_old_decisions_of_large_fleets_keep_what_was_chosen() -> None:
    ledger = Ledger(most=100, most_appraisals=200)
    for number in range(50):
        ledger.decided(record(str(number), candidates=64, chosen=40))
    assert len(ledger) == 50 and ledger.appraisals <= 200
    newest, oldest = ledger.get("49"), ledger.get("0")
    assert newest is not None and len(newest.decision.considered) == 64
    assert oldest is not None and oldest.as_dict()["candidates"] == 64
    assert [one.replica for one in oldest.decision.considered] == ["r1", "r40"]
    assert oldest.decision.appraisal.replica == "r40"


class Bounds(RuleBasedStateMachine):
    """Against a plain list of all that ever happened."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(most=5, most_appraisals=12)
        self.order: list[str] = []

    @rule(identity=st.sampled_from("abcdefgh"), candidates=st.integers(1, 6))
    def decide(self, identity: str, candidates: int) -> None:
        self.ledger.decided(record(identity, candidates))
        self.order = [one for one in self.order if one != identity] + [identity]

    @rule(identity=st.sampled_from("abcdefgh"))
    def end(self, identity: str) -> None:
        self.ledger.ended(identity, ending("r0"))
        found = self.ledger.get(identity)
        assert found is None or found.ending is not None

    @invariant()
    def the_last_five_are_there_newest_first(self) -> None:
        assert [one.decision.id for one in self.ledger.newest(99)] == self.order[-5:][::-1]
        assert len(self.ledger) == min(len(self.order), 5)
        assert self.ledger.appraisals <= 12

    @invariant()
    def what_was_chosen_is_always_there(self) -> None:
        for one in self.ledger.newest(99):
            assert one.decision.appraisal.replica == "r0"


TestBounds = Bounds.TestCase
TestBounds.settings = hypothesis_settings(max_examples=30, stateful_step_count=30, deadline=None)


def appraised(device: int, tokens: int, source: str, memory: int = 0, storage: int = 0, **more):
    return Appraisal(
        replica="a",
        score=0.0,
        tokens=tokens,
        device_tokens=device,
        source=source,
        memory_bytes=memory,
        storage_bytes=storage,
        **more,
    )


@pytest.mark.parametrize(
    ("appraisal", "cached", "expected"),
    [
        (appraised(0, 0, "none"), None, Sources(0, 0, 0, 1000)),
        (appraised(300, 300, "device"), None, Sources(300, 0, 0, 700)),
        (appraised(300, 700, "memory", 10), None, Sources(300, 400, 0, 300)),
        (appraised(300, 700, "storage", 10, 30), None, Sources(300, 100, 300, 300)),
        # The engine says less: what was nearest counts first.
        (appraised(300, 700, "memory", 10), 500, Sources(300, 200, 0, 500)),
        (appraised(300, 700, "memory", 10), 100, Sources(100, 0, 0, 900)),
        # It says more than was foreseen.
        (appraised(300, 300, "device"), 500, Sources(500, 0, 0, 500)),
        (appraised(300, 700, "storage", 0, 30), 900, Sources(500, 0, 400, 100)),
        (appraised(0, 0, "none"), 5000, Sources(1000, 0, 0, 0)),
    ],
)
def test_sources(appraisal: Appraisal, cached: int | None, expected: Sources) -> None:
    assert sources_of(appraisal, 1000, cached) == expected


def test_without_sizes_the_reaches_tell_what_memory_brought() -> None:
    reuse = Reuse(Reach(200), Reach(400), Reach(1000))
    found = sources_of(appraised(200, 1000, "storage", reuse=reuse), 1200, None)
    assert found == Sources(200, 200, 600, 200)


@given(
    st.integers(0, 9000),
    st.integers(0, 9000),
    st.sampled_from(["none", "device", "memory", "storage"]),
    st.integers(0, 100),
    st.integers(0, 100),
    st.none() | st.integers(0, 20_000),
)
def test_every_token_came_from_somewhere(
    tokens: int, device: int, source: str, memory: int, storage: int, cached: int | None
) -> None:
    appraisal = appraised(min(device, tokens), tokens, source, memory, storage)
    found = sources_of(appraisal, 9000, cached)
    parts = (found.device, found.memory, found.storage, found.computed)
    assert sum(parts) == 9000 and min(parts) >= 0
    assert found + Sources() == found
