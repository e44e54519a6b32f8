"""Whatever the network does and however often an engine restarts, a synced stream has its events."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstrata.events.stream import Apply, Replay, Reset, Stream, Trust


class Network(RuleBasedStateMachine):
    """An engine with a ring, a lossy network that delays and repeats, and a subscriber."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream(limit=20)
        self.life = 0
        self.published: list[bytes] = []
        self.ring = 6
        self.fly: list[tuple[int, bytes]] = []
        self.questions: list[int] = []
        self.applied: list[tuple[int, bytes]] = []
        self.act(self.stream.connected())

    def act(self, actions) -> None:
        for action in actions:
            if isinstance(action, Apply):
                self.applied.append((action.sequence, action.payload))
            elif isinstance(action, Reset):
                self.applied.clear()
            else:
                assert isinstance(action, Replay)
                self.questions.append(action.start)

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

    @rule()
    def answer(self) -> None:
        """The engine that lives now answers from its ring."""
        if not self.questions:
            return
        start = self.questions.pop(0)
        # What its earlier life sent came over another connection, which has been read to its end by now.
        self.fly = [item for item in self.fly if item[1].startswith(b"%d:" % self.life)]
        first = max(start, len(self.published) - self.ring)
        for sequence in range(first, len(self.published)):
            self.act(self.stream.replayed(sequence, self.published[sequence]))
            if self.questions:
                break  # it restarted in between; the runner gives up this answer
        else:
            self.act(self.stream.replay_ended())

    @rule()
    def restart(self) -> None:
        """What is under way of its old life may still arrive; the subscriber notices the connection."""
        self.life += 1
        self.published = []
        self.questions.clear()
        self.act(self.stream.replay_failed("the engine went away"))
        self.act(self.stream.connected())

    @rule()
    def settle(self) -> None:
        """The network calms down: everything arrives in order, every question is answered."""
        self.fly.clear()
        self.act(self.stream.connected())
        for _ in range(20):
            if not self.questions:
                break
            self.answer()
        assert not self.questions, "the stream asks for ever"
        assert self.stream.trust is not Trust.CATCHING_UP
        assert self.stream.expected == len(self.published)

    @invariant()
    def what_is_synced_is_true(self) -> None:
        if self.stream.trust is not Trust.SYNCED:
            assert self.stream.reason
        elif not self.fly and not self.questions:
            expected = list(enumerate(self.published))[: self.stream.expected]
            assert self.applied == expected

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.stream._held) <= 20


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=600, stateful_step_count=40, deadline=None)


def answered(stream: Stream, published: list[bytes], start: int = 0) -> list:
    """A whole replay."""
    actions = []
    for sequence in range(start, len(published)):
        actions += stream.replayed(sequence, published[sequence])
    return actions + stream.replay_ended()


def test_a_late_start_catches_up_from_the_ring() -> None:
    stream = Stream()
    assert stream.connected() == [Replay(0)]
    assert stream.received(3, b"3") == []
    actions = answered(stream, [b"0", b"1", b"2", b"3"])
    assert [action.sequence for action in actions] == [0, 1, 2, 3]
    assert stream.trust is Trust.SYNCED


def test_a_ring_that_rolled_over_leaves_it_stale_until_a_snapshot() -> None:
    stream = Stream()
    stream.connected()
    stream.replayed(5, b"5")
    stream.replay_ended()
    assert stream.trust is Trust.STALE and "batches 0 to 4 are lost" in stream.reason
    assert stream.received(6, b"6") == [Apply(6, b"6")]
    assert stream.trust is Trust.STALE
    stream.restored(6)
    assert stream.trust is Trust.SYNCED
    assert stream.received(7, b"7") == [Apply(7, b"7")]


def test_a_restart_at_the_same_address_is_noticed_even_if_the_numbers_fit() -> None:
    stream = Stream()
    stream.connected()
    answered(stream, [b"a0", b"a1", b"a2"])
    # A new life has published three batches, and its fourth is the first that arrives.
    assert stream.connected() == [Replay(2)]
    actions = stream.replayed(2, b"b2")
    assert isinstance(actions[0], Reset) and actions[1] == Replay(0)
    actions = answered(stream, [b"b0", b"b1", b"b2", b"b3"])
    assert [action.payload for action in actions] == [b"b0", b"b1", b"b2", b"b3"]


def test_a_sequence_that_goes_back_is_a_restart_and_a_repetition_is_not() -> None:
    stream = Stream()
    stream.connected()
    answered(stream, [b"a0", b"a1"])
    assert stream.received(1, b"a1") == [] and stream.repeated == 1
    actions = stream.received(0, b"b0")
    assert isinstance(actions[0], Reset) and actions[1] == Replay(0)


def test_without_replay_a_gap_is_stale_and_later_batches_count() -> None:
    stream = Stream()
    stream.connected()
    stream.replay_failed("the engine has no replay endpoint")
    assert stream.trust is Trust.STALE
    stream.received(0, b"0")
    assert stream.received(2, b"2") == [Replay(0)]
    assert stream.replay_failed("no replay endpoint") == [Apply(2, b"2")]
    assert "batches 1 to 1 are lost" in stream.reason
