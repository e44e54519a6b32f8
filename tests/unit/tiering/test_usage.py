"""What eviction is told of a request is what the planner would ask for at the same boundaries."""

from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.tiering.planner import GroupKeys, RequestShape, plan_load
from kvstrata.tiering.usage import describe_answer, describe_use

MODELS = {
    "full": [GroupGeometry(0, GroupKind.FULL, 16, 1, (64,))],
    "window": [
        GroupGeometry(0, GroupKind.WINDOW, 16, 1, (64,), window_tokens=40),
        GroupGeometry(1, GroupKind.FULL, 16, 1, (64,)),
    ],
    "state": [
        GroupGeometry(0, GroupKind.FULL, 16, 1, (64,)),
        GroupGeometry(1, GroupKind.STATE, 32, 1, (64,)),
    ],
    "two sizes": [
        GroupGeometry(0, GroupKind.FULL, 16, 1, (64,)),
        GroupGeometry(1, GroupKind.FULL, 32, 1, (64,)),
        GroupGeometry(2, GroupKind.WINDOW, 32, 1, (64,), window_tokens=64),
    ],
    "pure window": [GroupGeometry(0, GroupKind.WINDOW, 16, 2, (64,), window_tokens=64)],
}


def shape_of(model: str, tokens: int, cap: int | None = None) -> RequestShape:
    groups = []
    for geometry in MODELS[model]:
        count = tokens // geometry.tokens_per_chunk
        keys = [
            make_key(((i + 1) * geometry.tokens_per_chunk).to_bytes(16, "big"), geometry.group)
            for i in range(count)
        ]
        groups.append(GroupKeys(geometry, keys))
    return RequestShape(groups, tokens, 0, cap)


@given(st.sampled_from(sorted(MODELS)), st.integers(0, 400))
def test_the_end_of_a_prompt_needs_what_the_planner_loads_there(model: str, tokens: int) -> None:
    shape = shape_of(model, tokens)
    plan = plan_load(shape, lambda keys: [True] * len(keys), exact=True)
    use = describe_use(shape)
    if use is None:
        assert plan.boundary == 0
        return
    (end,) = use.kept
    assert end.tokens == plan.boundary
    needed = {key for key, _ in plan.needs()}
    named = {p.key for p in use.chain[: end.chain]} | {p.key for p in end.tail}
    assert named == needed


@given(st.sampled_from(["window", "state"]), st.integers(100, 400), st.data())
def test_junctions_and_the_place_of_resumption_are_boundaries_of_their_own(
    model: str, tokens: int, data: st.DataObject
) -> None:
    shape = shape_of(model, tokens)
    points = sorted(data.draw(st.sets(st.integers(1, 12).map(lambda n: 32 * n), max_size=3)))
    resumed = data.draw(st.sampled_from([0, 32, 64]))
    use = describe_use(shape, resumed, points)
    assert use is not None
    end = use.kept[-1].tokens
    assert [b.tokens for b in use.kept[:-1]] == [p for p in points if resumed < p < end]
    assert (use.resumed.tokens if use.resumed else 0) == resumed
    for boundary in use.kept[:-1]:
        plan = plan_load(
            shape_of(model, boundary.tokens + 1), lambda keys: [True] * len(keys), exact=True
        )
        assert {p.key for p in boundary.tail} <= {key for key, _ in plan.needs()}


def test_a_cap_on_loads_does_not_shorten_what_is_kept() -> None:
    use = describe_use(shape_of("window", 160, cap=32))
    assert use is not None and use.kept[-1].tokens == 159


def test_a_prompt_shorter_than_a_chunk_is_no_use() -> None:
    assert describe_use(shape_of("state", 20)) is None


@given(st.sampled_from(sorted(MODELS)), st.integers(40, 200), st.integers(0, 200))
def test_an_answer_goes_on_from_the_end_of_its_prompt(model: str, prompt: int, answer: int) -> None:
    before, whole = shape_of(model, prompt), shape_of(model, prompt + answer)
    use, end = describe_answer(whole, prompt), describe_use(before)
    after = describe_use(whole)
    if end is None or after is None or after.kept[-1].tokens == end.kept[-1].tokens:
        assert use is None
    else:
        assert use is not None and use.answered
        assert use.resumed == end.kept[-1]
        assert use.kept[-1] == after.kept[-1]
