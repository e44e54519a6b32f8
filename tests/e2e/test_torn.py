"""A window whose blocks were given away before they were stored: withheld, never written shifted."""

import pytest

from lab.models import prompt_ids
from tests.e2e.test_answers import agree

pytestmark = pytest.mark.engine

LENGTH = 2100
TIGHT = {
    "max_model_len": 2176,
    "engine": {
        "num_gpu_blocks_override": 24,
        "max_num_batched_tokens": 512,
        "enable_chunked_prefill": True,
        "prefix_cache_retention_interval": None,
    },
}
"""A pool that a prompt nearly fills, so that blocks which fall out of a window are used again at once."""


def store_and_read(start, root, prompts, **settings):
    """Answers of a second engine, and how many chunks the first one withheld."""
    extra = {"path": str(root), "memory": "256MiB", "blocks_per_chunk": 8}
    with start("gemma3-1to1", extra, **TIGHT, **settings) as writer:
        for prompt in prompts:
            writer.ask(prompt)
        torn = writer.do("metrics").get("writes_dropped{reason=torn}", 0)
    with start("gemma3-1to1", extra, **TIGHT) as reader:
        return [reader.ask(prompt)[0] for prompt in prompts], torn


def test_blocks_that_were_given_away_are_not_stored(start, tmp_path) -> None:
    prompts = [prompt_ids(LENGTH, seed=seed) for seed in range(2)]
    with start("gemma3-1to1", {"memory": "256MiB"}) as plain:
        cold = [plain.ask(prompt)[0] for prompt in prompts]
    answers, torn = store_and_read(start, tmp_path / "guarded", prompts)
    assert torn > 0
    assert all(agree(one, other) for one, other in zip(answers, cold, strict=True))
    assert all(answer["cached"] >= 1024 for answer in answers)
    wrong, torn = store_and_read(start, tmp_path / "unguarded", prompts, unguarded=True)
    assert torn == 0
    assert not all(agree(one, other) for one, other in zip(wrong, cold, strict=True))
