"""Whose chunks are: against a dictionary, and remembered no longer than they are being written."""

from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.record import NO_TENANT
from kvstrata.tiers.attribution import Attribution

keys = st.sampled_from([bytes([n]) * 36 for n in range(5)])
marks = st.sampled_from([NO_TENANT, b"tenant-a", b"tenant-b"])


@given(st.lists(st.dictionaries(keys, marks, max_size=5), max_size=12))
def test_the_last_word_counts_and_no_mark_forgets(told: list[dict[bytes, bytes]]) -> None:
    attribution, model = Attribution(), dict[bytes, bytes]()
    for one in told:
        attribution.set(one)
        model |= one
        for number in range(6):
            key = bytes([number]) * 36
            assert attribution.of(key) == model.get(key, NO_TENANT)
    attribution.set(dict.fromkeys(model, NO_TENANT))
    assert not attribution._marks, "nothing is kept of what was written"
