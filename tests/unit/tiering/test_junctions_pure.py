"""Where a request keeps windows for others: a boundary of all groups, and only where it helps."""

from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.tiering.planner import GroupKeys, RequestShape, junction, plan_load


def shape_of(tokens: int, computed: int = 0, window_block: int = 16) -> RequestShape:
    geometries = [
        GroupGeometry(0, GroupKind.FULL, 16, 1, (64,)),
        GroupGeometry(1, GroupKind.WINDOW, window_block, 1, (64,), window_tokens=40),
    ]
    return RequestShape(
        [
            GroupKeys(
                geometry,
                [
                    make_key(str(i).encode().ljust(16), geometry.group)
                    for i in range(tokens // geometry.tokens_per_block)
                ],
            )
            for geometry in geometries
        ],
        tokens=tokens,
        computed=computed,
    )


@given(st.integers(1, 600), st.integers(0, 40), st.integers(0, 10), st.sampled_from([16, 32, 48]))
def test_a_window_that_is_kept_there_serves_the_next_request(
    tokens: int, held: int, computed: int, window_block: int
) -> None:
    shape = shape_of(tokens, min(computed * 96, tokens // 96 * 96), window_block)
    full, window = shape.groups
    present = set(full.keys[:held])
    plan = plan_load(shape, lambda keys: [key in present for key in keys])
    place = junction(shape, plan.shared)
    if not place:
        return
    assert plan.boundary < place <= plan.shared
    assert place < tokens
    # What vLLM keeps at that place: the blocks of the window that ends there.
    first = max(place - 39, 0) // window_block
    present.update(window.keys[first : place // window_block])
    again = plan_load(shape, lambda keys: [key in present for key in keys])
    assert again.boundary == place
    assert junction(shape, again.shared) in (0, place)


def test_nothing_is_kept_where_nobody_was() -> None:
    shape = shape_of(500)
    assert junction(shape, plan_load(shape, lambda keys: [False] * len(keys)).shared) == 0


def test_the_prompts_own_end_is_kept_anyway() -> None:
    shape = shape_of(500)
    held = set(shape.groups[0].keys)
    assert junction(shape, plan_load(shape, lambda keys: [k in held for k in keys]).shared) == 0
