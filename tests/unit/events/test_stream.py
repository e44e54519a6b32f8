"""Whatever the network does and however often an engine restarts, a synced stream has its events."""

import hypothesis.strategies as st
import pytest
import xxhash
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kvstrata.events.stream import Apply, Ask, Replay, Reset, Stream, Trust
from kvstrata.wire.snapshot import VERSION, Header, Question

STATE, SNAPSHOT = Ask(Question.STATE), Ask(Question.SNAPSHOT)
LIMIT = 20


def header(published: list[bytes], life: int = 0, known: int = 3) -> Header:
    """What an engine of ours says of itself."""
    recent = tuple(xxhash.xxh3_128_digest(payload) for payload in published[-known:])
    return Header(VERSION, b"%d" % life, len(published) - 1, 0.0, 0, recent)


class Network(RuleBasedStateMachine):
    """An engine with a ring, a lossy network that delays and repeats, and a subscriber."""

    speaks: bool
    askable: bool

    def __init__(self) -> None:
        super().__init__()
        self.life = 0
        self.published: list[bytes] = []
        self.ring = 6
        self.fly: list[tuple[int, bytes]] = []
        self.question: Replay | Ask | None = None
        self.content: list[bytes] = []
        self.unnoticed = False

    @initialize(speaks=st.booleans(), askable=st.sampled_from([True, True, True, False]))
    def begin(self, speaks: bool, askable: bool) -> None:
        self.speaks, self.askable = speaks, askable
        self.stream = Stream(LIMIT, askable=askable)
        self.act(self.stream.connected())

    def act(self, actions) -> None:
        for action in actions:
            if isinstance(action, Apply):
                self.content.append(action.payload)
            elif isinstance(action, Reset):
                self.content.clear()
            else:
                assert self.askable
                self.question = action
        if self.question is not None:
            assert self.stream.question == self.question

    @rule(lost=st.booleans())
    def publish(self, lost: bool) -> None:
        payload = b"%d:%d" % (self.life, len(self.published))
        if not lost:
            self.fly.append((len(self.published), payload))
        self.published.append(payload)

    @rule(place=st.integers(0, 50), again=st.booleans())
    def deliver(self, place: int, again: bool) -> None:
        if self.fly:
            place %= len(self.fly)
            sequence, payload = self.fly[place] if again else self.fly.pop(place)
            self.act(self.stream.received(sequence, payload))

    @precondition(lambda self: self.question is not None)
    @rule(lost=st.sets(st.integers(0, 5), max_size=2), until=st.integers(0, 20))
    def answer(self, lost: frozenset[int] = frozenset(), until: int = 20) -> None:
        """The engine that lives now answers; parts of a replay may be lost, or its end."""
        question, self.question = self.question, None
        if question == STATE:
            known = header(self.published, self.life) if self.speaks else None
            return self.act(self.stream.stated(known))
        if question == SNAPSHOT:
            assert self.speaks
            self.content = list(self.published)
            self.unnoticed = False
            return self.act(self.stream.restored(header(self.published, self.life)))
        assert isinstance(question, Replay)
        first = max(question.start, len(self.published) - self.ring)
        for place, sequence in enumerate(range(first, len(self.published))):
            if place == until:
                return self.act(self.stream.failed("no end"))
            if place not in lost:
                self.act(self.stream.replayed(sequence, self.published[sequence]))
            if self.question is not None:
                return None  # another question takes the place of this one
        return self.act(self.stream.replay_ended())

    @precondition(lambda self: self.question is not None)
    @rule()
    def answer_nothing(self) -> None:
        self.question = None
        self.act(self.stream.failed("it does not answer"))

    @precondition(lambda self: self.question is None)
    @rule()
    def check(self) -> None:
        trust = self.stream.trust
        self.act(self.stream.check())
        if self.stream.question is not None and self.stream.reason != "":
            return  # a gap was found, or it was not synced before
        assert self.stream.trust is trust

    @rule()
    def lose_the_connection(self) -> None:
        """What was under way is gone with it."""
        self.fly.clear()
        self.question = None
        self.stream.disconnected("the connection was lost")
        assert self.stream.trust is Trust.STALE
        self.act(self.stream.connected())

    @rule()
    def restart(self) -> None:
        self.life += 1
        self.published = []
        self.lose_the_connection()

    @rule(forgotten=st.booleans())
    def restart_behind_a_proxy(self, forgotten: bool) -> None:
        """The subscriber's connection stays, and what is under way of the old life may still arrive."""
        self.life += 1
        self.published = []
        self.question = None
        self.unnoticed = True
        if forgotten:
            self.fly.clear()
        self.act(self.stream.failed("the engine went away"))

    @rule(reconnect=st.booleans())
    def settle(self, reconnect: bool) -> None:
        """The network calms down: everything arrives or is lost, every question is answered."""
        self.fly.clear()
        if reconnect:
            self.lose_the_connection()
        for _ in range(40):
            if self.question is None:
                self.act(self.stream.check())
            if self.question is not None:
                self.answer()
        while self.question is not None:  # the last check
            self.answer()
        assert self.stream.trust is not Trust.CATCHING_UP
        if self.stream.reason.endswith("its ring of batches is empty"):
            # Stock vLLM that restarted unseen, published nothing and can say nothing: stale until it does.
            assert self.stream.trust is Trust.STALE and not self.speaks and not self.published
        elif self.askable:
            assert self.stream.expected == len(self.published)
            assert not self.speaks or self.stream.trust is Trust.SYNCED
            if self.stream.trust is Trust.SYNCED:
                self.unnoticed = False
                assert self.content == self.published

    @invariant()
    def what_is_synced_is_true(self) -> None:
        if self.stream.trust is not Trust.SYNCED:
            assert self.stream.reason
            return
        assert not self.stream.reason
        if self.question is None and not self.unnoticed:
            assert self.content == self.published[: self.stream.expected]

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.stream._held) <= LIMIT


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=600, stateful_step_count=40, deadline=None)


def answered(stream: Stream, published: list[bytes], start: int = 0) -> list:
    """A whole replay."""
    actions = []
    for sequence in range(start, len(published)):
        actions += stream.replayed(sequence, published[sequence])
    return actions + stream.replay_ended()


def stock() -> Stream:
    """A stream of an engine that knows nothing of questions, newly connected."""
    stream = Stream()
    assert stream.connected() == [STATE]
    assert stream.stated(None) == [Replay(0)]
    return stream


def ours(published: list[bytes]) -> Stream:
    """A stream of an engine that answers questions, synced."""
    stream = Stream()
    assert stream.connected() == [STATE]
    assert stream.stated(header(published)) == [SNAPSHOT]
    assert stream.restored(header(published)) == []
    assert stream.trust is Trust.SYNCED
    return stream


def test_a_late_start_catches_up_from_the_ring() -> None:
    stream = stock()
    assert stream.received(3, b"3") == []
    assert stream.trust is Trust.CATCHING_UP
    actions = answered(stream, [b"0", b"1", b"2", b"3"])
    assert [action.sequence for action in actions] == [0, 1, 2, 3]
    assert stream.trust is Trust.SYNCED


def test_a_late_start_takes_a_snapshot_where_there_is_one() -> None:
    stream = ours([b"0", b"1", b"2"])
    assert stream.expected == 3 and stream.epoch == b"0"
    assert stream.received(3, b"3") == [Apply(3, b"3")]


def test_a_ring_that_rolled_over_leaves_it_stale() -> None:
    stream = stock()
    stream.replayed(5, b"5")
    stream.replay_ended()
    assert stream.trust is Trust.STALE and "batches 0 to 4 are lost" in stream.reason
    assert stream.received(6, b"6") == [Apply(6, b"6")]
    assert stream.trust is Trust.STALE


def test_with_a_snapshot_it_does_not() -> None:
    stream = ours([b"0"])
    assert stream.received(9, b"9") == [Replay(0)]
    for sequence in range(5, 10):
        stream.replayed(sequence, b"%d" % sequence)
    assert stream.trust is Trust.CATCHING_UP
    assert stream.replay_ended() == [SNAPSHOT]
    assert stream.trust is Trust.CATCHING_UP
    assert stream.received(10, b"10") == []
    assert stream.restored(header([b"%d" % n for n in range(10)])) == [Apply(10, b"10")]
    assert stream.trust is Trust.SYNCED


def test_batches_under_way_during_a_snapshot_are_repetitions_and_no_restart() -> None:
    stream = ours([b"0", b"1", b"2"])
    assert stream.received(1, b"1") == [] and stream.received(2, b"2") == []
    assert stream.trust is Trust.SYNCED and stream.repeated == 2


def test_a_lost_last_batch_is_found_at_the_second_check() -> None:
    stream = ours([b"0"])
    assert stream.check() == [STATE] and stream.trust is Trust.SYNCED
    assert stream.stated(header([b"0", b"1"])) == []
    assert stream.trust is Trust.SYNCED and stream.behind == 1
    assert stream.check() == [Replay(0)] and stream.trust is Trust.CATCHING_UP
    assert answered(stream, [b"0", b"1"]) == [Apply(1, b"1")]
    assert stream.trust is Trust.SYNCED and stream.behind == 0


def test_a_batch_that_was_only_late_is_no_gap() -> None:
    stream = ours([b"0"])
    stream.check()
    stream.stated(header([b"0", b"1"]))
    assert stream.received(1, b"1") == [Apply(1, b"1")]
    assert stream.check() == [STATE]


def test_a_stock_engines_lost_last_batch_and_silent_restart_are_found_by_replay() -> None:
    stream = stock()
    answered(stream, [b"a0", b"a1"])
    assert stream.check() == [Replay(1)] and stream.trust is Trust.SYNCED
    assert answered(stream, [b"a0", b"a1", b"a2"], 1) == [Apply(2, b"a2")]
    assert stream.check() == [Replay(2)]
    actions = stream.replay_ended()
    assert isinstance(actions[0], Reset) and actions[1] == Replay(0)
    assert stream.trust is Trust.CATCHING_UP and stream.restarts == 1


def test_a_new_epoch_is_a_restart() -> None:
    stream = ours([b"a0", b"a1"])
    assert stream.check() == [STATE]
    actions = stream.stated(header([b"b0", b"b1"], life=1))
    assert isinstance(actions[0], Reset) and actions[1] == SNAPSHOT
    assert stream.restored(header([b"b0", b"b1"], life=1)) == []
    assert stream.epoch == b"1" and stream.restarts == 1


def test_a_restart_at_the_same_address_is_noticed_even_if_the_numbers_fit() -> None:
    stream = stock()
    answered(stream, [b"a0", b"a1", b"a2"])
    # A new life has published three batches, and its fourth is the first that arrives.
    assert stream.connected() == [STATE]
    assert stream.stated(None) == [Replay(2)]
    actions = stream.replayed(2, b"b2")
    assert isinstance(actions[0], Reset) and actions[1] == Replay(0)
    actions = answered(stream, [b"b0", b"b1", b"b2", b"b3"])
    assert [action.payload for action in actions] == [b"b0", b"b1", b"b2", b"b3"]


def test_a_ring_that_does_not_reach_the_last_applied_batch_proves_nothing() -> None:
    stream = stock()
    answered(stream, [b"a0", b"a1"])
    stream.check()
    # Of the same life this would be the next batch, of another its third.
    stream.replayed(2, b"b2")
    stream.replay_ended()
    assert stream.trust is Trust.STALE and "does not reach back to batch 1" in stream.reason


def test_a_sequence_that_goes_back_is_asked_about_and_a_repetition_is_not() -> None:
    stream = stock()
    answered(stream, [b"a0", b"a1"])
    assert stream.received(1, b"a1") == [] and stream.repeated == 1
    assert stream.received(0, b"b0") == [Replay(1)]
    actions = stream.replay_ended()
    assert isinstance(actions[0], Reset) and actions[1] == Replay(0)
    assert answered(stream, [b"b0"]) == [Apply(0, b"b0")]


def test_contradicting_batches_of_one_epoch_end_in_a_snapshot() -> None:
    stream = ours([b"0", b"1"])
    assert stream.received(1, b"other") == [STATE]
    assert stream.stated(header([b"0", b"1"])) == [SNAPSHOT]
    stream.restored(header([b"0", b"1"]))
    assert stream.trust is Trust.SYNCED and stream.dropped == 1


def test_without_replay_a_gap_is_stale_and_later_batches_count() -> None:
    stream = Stream(askable=False)
    assert stream.connected() == []
    assert stream.trust is Trust.STALE and "no replay endpoint" in stream.reason
    stream.received(0, b"0")
    assert stream.trust is Trust.SYNCED, "from the first batch on nothing was missed"
    assert stream.check() == []
    assert stream.received(2, b"2") == [Apply(2, b"2")]
    assert stream.trust is Trust.STALE and "batches 1 to 1 are lost" in stream.reason


def test_without_replay_a_sequence_that_goes_back_is_a_restart() -> None:
    stream = Stream(askable=False)
    stream.connected()
    stream.received(0, b"a0")
    stream.received(1, b"a1")
    actions = stream.received(0, b"b0")
    assert isinstance(actions[0], Reset) and actions[1] == Apply(0, b"b0")
    assert stream.trust is Trust.SYNCED


def test_an_endpoint_that_stops_answering_makes_it_doubtful_until_it_answers() -> None:
    stream = ours([b"0"])
    stream.check()
    assert stream.failed("no answer within 2 s") == []
    assert stream.trust is Trust.STALE and "no answer within 2 s" in stream.reason
    assert stream.check() == [STATE]
    stream.stated(header([b"0"]))
    assert stream.trust is Trust.SYNCED


def test_a_failed_snapshot_is_asked_for_again() -> None:
    stream = Stream()
    stream.connected()
    stream.stated(header([b"0"]))
    stream.failed("cut off")
    assert stream.trust is Trust.STALE and "cut off" in stream.reason
    assert stream.check() == [SNAPSHOT] and stream.trust is Trust.STALE
    assert stream.received(1, b"1") == [], "what a snapshot replaces must not be applied before it"
    assert stream.restored(header([b"0"])) == [Apply(1, b"1")]
    assert stream.trust is Trust.SYNCED


def test_an_unreadable_batch_makes_it_stale_and_a_snapshot_mends_it() -> None:
    stream = ours([b"0"])
    stream.received(1, b"?")
    stream.damaged("batch 1 cannot be read")
    assert stream.trust is Trust.STALE
    assert stream.check() == [SNAPSHOT]
    stream.restored(header([b"0", b"?"]))
    assert stream.trust is Trust.SYNCED


def test_a_hole_in_a_replay_is_asked_for_again_and_not_for_ever() -> None:
    stream = stock()
    stream.replayed(0, b"0")
    stream.replayed(2, b"2")
    for _ in range(3):
        assert stream.replay_ended() == [Replay(0)]
        stream.replayed(0, b"0")
        stream.replayed(2, b"2")
    assert Apply(2, b"2") in stream.replay_ended()
    assert stream.trust is Trust.STALE and "does not replay" in stream.reason


def test_an_engine_without_a_ring_is_not_taken_for_one_that_published_nothing() -> None:
    stream = stock()
    stream.replay_ended()
    assert stream.received(4, b"4") == [Replay(0)]
    assert stream.replay_ended() == [Apply(4, b"4")]
    assert stream.trust is Trust.STALE and "lost" in stream.reason
    assert stream.check() == [STATE], "it may be another by now"
    assert stream.stated(None) == []
    assert stream.trust is Trust.STALE and "lost" in stream.reason


@pytest.mark.parametrize("size", [1, 50])
def test_what_is_held_is_bounded_in_bytes(size: int) -> None:
    stream = Stream(limit_bytes=100)
    stream.connected()
    for sequence in range(1, 200):
        stream.received(sequence, bytes(size))
    assert stream._held.nbytes <= 100


def test_a_batch_that_the_engine_does_not_know_is_dropped_and_delays_nothing() -> None:
    stream = stock()
    answered(stream, [b"0"])
    assert stream.received(5, b"of an earlier life") == [Replay(0)]
    assert answered(stream, [b"0", b"1"]) == [Apply(1, b"1")]
    assert stream.trust is Trust.SYNCED and stream.dropped == 1


def test_an_engine_that_published_less_than_was_applied_is_believed_by_its_snapshot() -> None:
    stream = ours([b"0"])
    stream.received(1, b"of an earlier life")
    assert stream.check() == [STATE]
    assert stream.stated(header([b"0"])) == [SNAPSHOT]
    stream.restored(header([b"0"]))
    assert stream.trust is Trust.SYNCED and stream.expected == 1
