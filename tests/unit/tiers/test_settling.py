"""What an estimate holds for certain: never a byte that was written after its sample was taken."""

from hypothesis import given
from hypothesis import strategies as st

from kvstrata.tiers.keeper import Settling

# What happens, in order: this process writes; somebody takes a sample (it begins and is written down later);
# this process sees what was written down last, or takes a sample itself.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 100)),
        st.tuples(st.sampled_from(["begin", "publish", "see", "own"]), st.just(0)),
    ),
    max_size=60,
)


@given(EVENTS)
def test_no_byte_is_settled_that_a_sample_may_lack(events: list[tuple[str, int]]) -> None:
    settling = Settling()
    total = settled = 0
    number = begun_with = seen_with = 0  # of the last sample; bytes written when it began
    under_way: int | None = None
    for event, nbytes in events:
        if event == "write":
            total += nbytes
        elif event == "begin" and under_way is None:
            under_way = total
        elif event == "publish" and under_way is not None:
            number, begun_with, under_way = number + 1, under_way, None
        elif event == "own" and under_way is None:  # the lease: one at a time
            number, begun_with = number + 1, total
            settled += settling.settled(number, total - settled, total - settled)
        elif event == "see":
            settled += settling.settled(number, total - settled, None)
        else:
            continue
        seen_with = max(seen_with, begun_with)
        assert 0 <= settled <= seen_with


def test_all_is_settled_when_samples_go_on() -> None:
    settling = Settling()
    assert settling.settled(7, 100, None) == 0, "begun before it was written, for all that is known"
    assert settling.settled(7, 150, None) == 0
    assert settling.settled(8, 150, None) == 0
    assert settling.settled(9, 150, None) == 100
    assert settling.settled(10, 50, None) == 50


def test_who_takes_a_sample_knows_what_was_written_before() -> None:
    settling = Settling()
    assert settling.settled(3, 120, 100) == 100
    assert settling.settled(4, 20, None) == 0
    assert settling.settled(5, 20, None) == 20


def test_numbers_that_begin_anew_settle_what_was_marked() -> None:
    settling = Settling()
    settling.settled(1000, 100, None)
    assert settling.settled(3, 130, None) == 100
