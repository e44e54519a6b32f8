"""A repeated prompt in an engine whose core runs in a process of its own, as in a server.

`python tests/e2e/separate_core_probe.py MODEL DIRECTORY` prints the cached tokens of each request as JSON.
No block size is given: the engine chooses it.
"""

import json
import os
import sys

os.environ.update(
    OMP_NUM_THREADS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="1",
    VLLM_LOGGING_LEVEL="WARNING",
    HF_HUB_OFFLINE="1",
)


def main() -> None:
    """Ask twice on an empty cache, then once more without the device's."""
    from vllm import LLM, SamplingParams

    from lab.models import RECIPES, ensure, prompt_ids

    model, directory = sys.argv[1:]
    extra = {"path": directory, "memory": "96MiB"}
    settings = {key: v for key, v in RECIPES[model].engine.items() if key != "block_size"}
    llm = LLM(
        model=str(ensure(model)),
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=4,
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=True,
        kv_transfer_config={
            "kv_connector": "KVStrataConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        },
        **settings,
    )
    cached = []
    for round_ in range(3):
        if round_ == 2:
            llm.reset_prefix_cache()
        (answer,) = llm.generate(
            [{"prompt_token_ids": prompt_ids(1500, seed=3)}],
            SamplingParams(temperature=0.0, max_tokens=4),
            use_tqdm=False,
        )
        cached.append(answer.num_cached_tokens)
    sys.stdout.write("\n" + json.dumps(cached) + "\n")


if __name__ == "__main__":
    main()
