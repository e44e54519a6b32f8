"""Few token ids are read on the loop, all else in the thread; what is read is the same."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.chunks import block_hashes
from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.fleet.hashing import Recipe
from kvstrata.router import ids
from kvstrata.router import reading as module
from kvstrata.router.asking import ask
from kvstrata.router.reading import Read, Reading

RECIPES = [
    Recipe(algorithm, BlockHasher("sha256", 16).none_hash, tokens)
    for algorithm, tokens in (
        ("sha256", 16),
        ("sha256_cbor", 8),
        ("xxhash", 32),
        ("xxhash_cbor", 1),
        ("of another release", 16),
    )
]
PATHS = ("/v1/completions", "/v1/embeddings", "/v1/chat/completions", "/score")
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=400)
PROMPTS = st.one_of(
    IDS,
    IDS.map(lambda ids: [ids]),
    st.lists(st.one_of(st.integers(-5, 2**32), st.floats(allow_nan=False), st.none(), st.text())),
    st.lists(IDS, max_size=3),
    st.text(max_size=40),
    st.none(),
)


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    ids.warm()
    block_hashes.warm()


class Threaded(Reading):
    """Counts what it leaves to its thread."""

    hops = 0

    async def _run(self, function: Any) -> Any:
        self.hops += 1
        return await super()._run(function)


def told(found: Read, recipes: list[Recipe]) -> Any:
    prompt, keys = found.prompt, [found.hashes("r", recipe) for recipe in recipes]
    ids = None if prompt.tokens is None else prompt.tokens.tolist()
    rest = prompt.salt, prompt.doubt, prompt.cached, prompt.question
    return ids, [None if one is None else one.tolist() for one in keys], rest


def read(asked: Any, recipes: list[Recipe]) -> tuple[Any, int]:
    """What is read of it, and how often the thread had to."""

    async def both() -> tuple[Any, int]:
        reading = Threaded()
        try:
            return told(await reading.read(asked, recipes), recipes), reading.hops
        finally:
            reading.close()

    return asyncio.run(both())


def asked(path: str, body: dict[str, Any]) -> Any:
    made = SimpleNamespace(path=path, headers=(), body=json.dumps(body).encode())
    return ask(made, "one")  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(PATHS),
    key=st.sampled_from(["prompt", "input"]),
    prompt=PROMPTS,
    more=st.fixed_dictionaries(
        {},
        optional={
            "cache_salt": st.text(max_size=3),
            "echo": st.booleans(),
            "logprobs": st.integers(0, 2),
            "suffix": st.text(max_size=2),
        },
    ),
    recipes=st.lists(st.sampled_from(RECIPES), min_size=1, unique=True),
)
def test_where_it_is_read_changes_nothing(
    path: str, key: str, prompt: Any, more: dict[str, Any], recipes: list[Recipe]
) -> None:
    request = asked(path, {**more, key: prompt})
    found, hops = read(request, recipes)
    before, module.AT_ONCE = module.AT_ONCE, -1.0
    try:
        otherwise, hopped = read(request, recipes)
    finally:
        module.AT_ONCE = before
    assert found == otherwise
    assert hopped == 1 and hops <= 1


@pytest.mark.parametrize(
    ("count", "path", "recipes", "hops"),
    [
        (1024, "/v1/completions", RECIPES[:1], 0),
        (1024, "/v1/embeddings", RECIPES[:1], 1),  # where it has no input
        (4096, "/v1/completions", RECIPES[:1], 1),
        (400, "/v1/completions", RECIPES[3:4], 1),
        (200, "/v1/completions", RECIPES[2:3], 0),
    ],
)
def test_only_few_ids_hold_up_the_loop(
    count: int, path: str, recipes: list[Recipe], hops: int
) -> None:
    ids = list(range(100_000, 100_000 + count))
    found, hopped = read(asked(path, {"prompt": ids}), recipes)
    assert hopped == hops
    assert path != "/v1/completions" or found[0] == ids


def test_texts_never_do() -> None:
    assert read(asked("/v1/completions", {"prompt": "a"}), RECIPES[:1])[1] == 1
    assert read(asked("/v1/completions", {"prompt": ["a"]}), RECIPES[:1])[1] == 1
