"""A window whose blocks were given away before they were stored: withheld, never written shifted."""

import pytest
from test_answers import agree

from lab.models import prompt_ids

pytestmark = pytest.mark.engine

LENGTH = 2300
TIGHT = {
    "max_model_len": 2560,
    "engine": {
        "num_gpu_blocks_override": 24,
        "max_num_batched_tokens": 512,
        "enable_chunked_prefill": True,
        "prefix_cache_retention_interval": None,
    },
}
"""A pool that a prompt nearly fills, so that blocks which fall out of a window are used again at once."""


def chunks_of_eight(root) -> dict:
    return {"path": str(root), "memory": "256MiB", "blocks_per_chunk": 8}


def test_blocks_that_were_given_away_are_not_stored(start, tmp_path) -> None:
    prompts = [prompt_ids(LENGTH, seed=seed) for seed in range(4)]
    with start("gemma3-1to1", {"memory": "256MiB"}) as plain:
        cold = [plain.ask(prompt)[0] for prompt in prompts]
    with start("gemma3-1to1", chunks_of_eight(tmp_path / "kv"), **TIGHT) as writer:
        for prompt in prompts:
            writer.ask(prompt)
        torn = writer.do("metrics").get("writes_dropped{reason=torn}", 0)
    with start("gemma3-1to1", chunks_of_eight(tmp_path / "kv"), **TIGHT) as reader:
        answers = [reader.ask(prompt)[0] for prompt in prompts]
        print("torn", torn, [a["cached"] for a in answers])
    assert torn > 0, "nothing was torn: this test could not fail"
    assert all(agree(one, other) for one, other in zip(answers, cold, strict=True))
