"""Ask one tiny model, in this process, the questions of test_models.py; prints one JSON line.

Run as a process of its own, because an engine does not give back all it took:
`python tests/e2e/model_probe.py NAME`.
"""

import json
import os
import sys

# vLLM reads these when it is imported.
os.environ.update(
    OMP_NUM_THREADS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    HF_HUB_OFFLINE="1",
)

from vllm import LLM, SamplingParams

from lab.models import PRINTABLE, RECIPES, VOCAB_SIZE, ensure, prompt_ids

PROMPT_TOKENS = 600
CHANGED_POSITIONS = (3, 70, 200, 590)
ANSWER_TOKENS = 16


def answer(engine: LLM, prompt: list[int]) -> tuple[list[int], list[float], int]:
    """Greedy token ids, the log-probabilities of the whole vocabulary for the first, cached."""
    sampling = SamplingParams(
        temperature=0.0, max_tokens=ANSWER_TOKENS, logprobs=VOCAB_SIZE, detokenize=False
    )
    request = engine.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)[0]
    first = request.outputs[0].logprobs[0]
    ordered = [first[token].logprob for token in PRINTABLE]
    return list(request.outputs[0].token_ids), ordered, request.num_cached_tokens or 0


def distance(one: list[float], other: list[float]) -> float:
    """Largest difference of two lists of log-probabilities."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def probe(name: str) -> dict[str, object]:
    """What test_models.py asserts about the model `name`."""
    engine = LLM(
        model=str(ensure(name)),
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=4,
        kv_cache_memory_bytes=64 << 20,
        max_logprobs=VOCAB_SIZE,
        enable_prefix_caching=True,
        distributed_executor_backend="uni",
        disable_log_stats=True,
        **RECIPES[name].engine,
    )
    prompt = prompt_ids(PROMPT_TOKENS, seed=7)
    tokens, cold, _ = answer(engine, prompt)
    hit_tokens, hit, cached = answer(engine, prompt)
    changes = {}
    for position in CHANGED_POSITIONS:
        changed = prompt.copy()
        changed[position] = PRINTABLE[(changed[position] - PRINTABLE.start + 1) % len(PRINTABLE)]
        changed_tokens, found, _ = answer(engine, changed)
        changes[position] = {"distance": distance(cold, found), "same": changed_tokens == tokens}
    text = "".join(map(chr, range(0x20, 0x2000, 37))) + "\n\t\0 \U0001f9f1"
    tokenizer = engine.get_tokenizer()
    ids = tokenizer.encode(text)
    return {
        "tokens": tokens,
        "printable": all(token in PRINTABLE for token in tokens),
        "cached": cached,
        "noise": distance(cold, hit),
        "hit_same": hit_tokens == tokens,
        "changes": changes,
        "bytes_are_ids": ids == list(text.encode()),
        "round_trip": tokenizer.decode(ids) == text,
    }


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1])))
