"""Block hashes of requests are those of vLLM's own request, adapters and images included."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry, OpenAIServingModels
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.request import Request

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.fleet.hashing import Recipe
from kvstrata.router.asking import ask
from kvstrata.router.reading import Reading
from kvstrata.router.replicas import _models
from kvstrata.wire.batches import low_bits

RECIPE = Recipe("sha256", BlockHasher("sha256", 16).none_hash, 16)
PROMPT = [(7 * n) % 50_000 for n in range(16 * 70 + 5)]


def hashes_of_vllm(tokens: list[int], **more: Any) -> list[bytes]:
    function = get_hash_fn_by_name("sha256")
    kv_cache_utils.init_none_hash(function)
    hasher = kv_cache_utils.get_request_block_hasher(16, function)
    return list(
        Request("r", tokens, SamplingParams(), None, block_hasher=hasher, **more).block_hashes
    )


def read(model: str | None, served: Any, **body: Any) -> Any:
    async def go() -> Any:
        reading = Reading()
        reading._replicas["a"] = SimpleNamespace(name="a", served=served)  # type: ignore[assignment]
        named = {"prompt": PROMPT, **({} if model is None else {"model": model}), **body}
        request = SimpleNamespace(
            path="/v1/completions", headers=(), body=json.dumps(named).encode()
        )
        try:
            return await reading.read(ask(request, "one"), [RECIPE])  # type: ignore[arg-type]
        finally:
            reading.close()

    return asyncio.run(go())


def listed_by_vllm(adapter: LoRARequest) -> Any:
    """What vLLM's own code answers at `/v1/models`, as the router reads it."""
    config = SimpleNamespace(max_model_len=100)
    registry = OpenAIModelRegistry(config, [BaseModelPath("tiny", "/models/tiny")])
    models = OpenAIServingModels.__new__(OpenAIServingModels)
    models.registry = registry
    models.base_model_paths = registry.base_model_paths
    models.lora_requests = {adapter.lora_name: adapter}
    answer = asyncio.run(models.show_available_models())
    served = _models(200, answer.model_dump_json().encode())
    assert served is not None
    return served


@pytest.mark.parametrize("salt", [None, "pepper"])
def test_an_adapters_hashes_are_vllms(salt: str | None) -> None:
    adapter = LoRARequest("tuned", 1, "/adapters/tuned-é")
    served = listed_by_vllm(adapter)
    more = {} if salt is None else {"cache_salt": salt}
    for model, request in (("tuned", adapter), ("tiny", None), (None, None)):
        expected = hashes_of_vllm(PROMPT, lora_request=request, **more)
        found = read(model, served, **more).hashes("a", RECIPE)
        assert found is not None and found.tolist() == [low_bits(one) for one in expected]


@settings(max_examples=100)
@given(st.integers(0, 200), st.integers(1, 60), st.booleans())
def test_blocks_before_an_image_are_those_of_the_text_alone(offset, length, salted) -> None:
    tokens = PROMPT[: offset + length + 20]
    image = SimpleNamespace(
        identifier="i", mm_position=SimpleNamespace(offset=offset, length=length)
    )
    more = {"cache_salt": "s"} if salted else {}
    whole = hashes_of_vllm(tokens, mm_features=[image], **more)
    start = BlockHasher("sha256", 16).hashes(
        np.array(tokens[:offset], np.uint32), salt="s" if salted else None
    )
    assert whole[: len(start)] == start
