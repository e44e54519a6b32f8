"""Beginnings are found again, and the memory for them is bounded."""

from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.beginnings import Beginnings

names = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])


@given(
    st.integers(1, 12),
    st.lists(st.tuples(names, st.integers(1, 5)) | st.lists(names, max_size=4), max_size=40),
)
def test_it_is_a_bounded_map_that_forgets_what_was_not_used_for_longest(capacity, steps) -> None:
    made: Beginnings[int] = Beginnings(capacity, lambda value: value)
    model: dict[bytes, int] = {}  # the last used last
    for step in steps:
        if isinstance(step, tuple):
            name, value = step
            made.remember(name, value)
            model.pop(name, None)
            model[name] = value
            while sum(model.values()) > capacity:
                model.pop(next(iter(model)))
        else:
            expected = []
            for name in step:
                if name not in model:
                    break
                expected.append(model[name])
                model[name] = model.pop(name)
            assert made.known(step) == expected
        assert (len(made), made.weight) == (len(model), sum(model.values()))


def test_a_context_makes_other_names() -> None:
    made: Beginnings[int] = Beginnings(1, lambda _: 1)
    assert made.digest().digest() == made.digest().digest() != made.digest(b"x").digest()
    other: Beginnings[int] = Beginnings(1, lambda _: 1)
    assert made.digest().digest() != other.digest().digest()
