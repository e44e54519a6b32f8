"""Whatever tier a prefix comes from, the answer is that of a recompute: same tokens, same scores."""

from itertools import pairwise

import pytest

from lab.models import ensure, prompt_ids

MODELS = ["llama", "gemma3-1to1", "gemma3-5to1", "gemma3-w1024", "gpt-oss"]
BLOCK = 128
LENGTHS = (2000, 2048, 2049, 300)
"""Off a chunk's edge, on it, one past it; and short."""
NOISE = 5e-4
"""Log-probability difference of a prefix hit in float32: the rest of the prompt has other shapes."""

pytestmark = pytest.mark.engine


def agree(one, other) -> bool:
    """Same tokens, and log-probabilities within the noise of another order of summation."""
    close = all(abs(a - b) < NOISE for a, b in zip(one["logprobs"], other["logprobs"], strict=True))
    return one["tokens"] == other["tokens"] and close


def servable(length: int, window: bool) -> int:
    """Tokens that a repeated prompt of this length can skip: whole blocks, one token left over."""
    return (length - (1 if window else 0)) // BLOCK * BLOCK


@pytest.mark.parametrize("model", MODELS)
def test_every_tier_gives_the_answer_of_a_recompute(model: str, start) -> None:
    ensure(model)
    prompts = [prompt_ids(length, seed=length) for length in LENGTHS]
    branches = [prompt[: len(prompt) // 2] + prompt_ids(200, seed=5) for prompt in prompts[:2]]
    with start(model) as writer:
        cold = [writer.ask(prompt)[0] for prompt in prompts]
        assert [answer["cached"] for answer in cold] == [0] * len(prompts)
        device = [writer.ask(prompt)[0] for prompt in prompts]
        writer.do("reset_device")
        memory = [writer.ask(prompt)[0] for prompt in prompts]
        mid = [writer.ask(branch)[0] for branch in branches]
        writer.do("reset_device")
        batch = writer.ask(*prompts)
        served = writer.do("metrics")
        assert writer.do("idle")

        # A second engine beside the first, on the same directory.
        with start(model) as reader:
            storage = [reader.ask(prompt)[0] for prompt in prompts]
            metrics = reader.do("metrics")
            branched = [reader.ask(branch)[0] for branch in branches]
            reader.do("reset_device")
            again = reader.ask(*prompts)

    for answers in (device, memory, storage, batch, again):
        for answer, reference, length in zip(answers, cold, LENGTHS, strict=True):
            assert agree(answer, reference), f"{length} tokens"
            assert answer["cached"] >= servable(length, window=True), f"{length} tokens"
    for answer, reference in zip(branched, mid, strict=True):
        assert agree(answer, reference)
    if model == "llama":
        assert [answer["cached"] for answer in mid] == [896, 1024]
    total = sum(answer["cached"] for answer in storage)
    assert metrics["tokens{tier=filesystem}"] == total
    assert served["tokens{tier=memory}"] >= sum(answer["cached"] for answer in memory)
    assert metrics["bad_records{reason=checksum}"] == 0


def test_a_window_reads_only_its_tail_from_storage(start) -> None:
    prompt = prompt_ids(2000, seed=1)
    with start("gemma3-5to1") as writer:
        cold = writer.ask(prompt)[0]
        assert writer.do("idle")
        stored = writer.do("metrics")["bytes{direction=write,tier=filesystem}"]
    with start("gemma3-5to1") as reader:  # a restart: the writer is gone
        answer = reader.ask(prompt)[0]
        assert agree(answer, cold)
        read = reader.do("metrics")["bytes{direction=read,tier=filesystem}"]
    block = 2 * 2 * 2 * 64 * 4 * BLOCK  # 2 layers a group, K and V, 2 heads of 64 floats
    assert answer["cached"] == 1920
    assert read == (15 + 5) * block  # 15 chunks of the full group, one of each windowed group
    assert read == stored


@pytest.mark.parametrize("model", ["llama", "gemma3-w1024"])
def test_chunks_of_several_blocks(model: str, start) -> None:
    prompts = [prompt_ids(length, seed=length) for length in (2100, 2048)]
    extra = {"memory": "96MiB", "blocks_per_chunk": 4}
    with start(model) as plain:
        cold = [plain.ask(prompt)[0] for prompt in prompts]
    extra["path"] = str(plain.log.parent / "several")
    with start(model, extra) as writer:
        for prompt in prompts:
            writer.ask(prompt)
    with start(model, extra) as reader:
        for prompt, reference in zip(prompts, cold, strict=True):
            answer = reader.ask(prompt)[0]
            assert agree(answer, reference) and answer["cached"] >= 1536


def test_a_conversation_grows_turn_by_turn(tmp_path, start) -> None:
    path_alone = {"path": str(tmp_path / "kv")}
    turns = [prompt_ids(700, seed=1)]
    for seed in (2, 3, 4):
        turns.append(turns[-1] + prompt_ids(260, seed=seed))
    with start("llama", path_alone) as writer:
        answers = [writer.ask(turn)[0] for turn in turns]
    with start("llama", path_alone) as reader:
        read = [reader.ask(turn)[0] for turn in reversed(turns)][::-1]
    assert all(agree(one, other) for one, other in zip(answers, read, strict=True))
    assert all(later["cached"] > earlier["cached"] for earlier, later in pairwise(answers))


def test_after_a_reset_of_all_tiers_nothing_old_is_used(start) -> None:
    prompt = prompt_ids(1000, seed=1)
    with start("llama") as engine:
        cold = engine.ask(prompt)[0]
        assert engine.do("idle")
        engine.do("reset_all")
        fresh = engine.ask(prompt)[0]
        assert fresh["cached"] == 0 and agree(fresh, cold)
        engine.do("reset_device")
        again = engine.ask(prompt)[0]
        assert again["cached"] == 896 and agree(again, cold)
