"""Every kind of KV cache that runs on a CPU: the same answers from every tier, and proof that it matters.

One short examination a kind is part of all tests; the full one, over more lengths, is marked `zoo` and
leaves a row in build/zoo, from which `python -m lab.support` makes the table in docs/support.md.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kvstrata.chunks.key import group_of, hash_of, parse_file_name
from kvstrata.testing.damage import forge
from kvstrata.tiers.catalog import iter_namespaces, iter_records
from lab.models import RECIPES, ensure, prompt_ids
from lab.refused import ENGINE, REFUSED, write_configuration
from lab.support import BYTES_ONLY, ROWS, ZOO
from tests.e2e.engine import Engine, EngineError

NOISE = {"float32": 5e-4, "bfloat16": 0.02}
"""Log-probability difference that the same prefix may make: the rest of the prompt has other shapes."""

ALL_LENGTHS = (2000, 2048, 2049, 1537, 1000, 300)
"""Off a block's edge, on it, one past it (of blocks of 128, 256 and of 384 tokens); and short."""
FEW_LENGTHS = (2048, 1537)
CONTROL_TOKENS = 800
"""Of the prompts whose stored bytes are forged: little is left to compute, whatever the block size."""

BLIND: dict[tuple[str, int], str] = {}
"""Groups whose bytes the answer does not show, and why."""

COVERED_ELSEWHERE = {"llama", "gemma3-1to1", "gemma3-5to1", "gemma3-w1024", "gpt-oss"}
"""Kinds that test_answers.py examines in every run of the tests."""

LIKE_OTHERS = {"falcon-h1", "nemotron-h", "zamba2", "qwen3.5"}
"""Models of a kind that another one stands for in the brief examination: granite-4-h, qwen3-next."""

pytestmark = pytest.mark.engine


@dataclass
class Findings:
    """What one kind's examination saw; becomes its row."""

    model: str
    lengths: tuple[int, ...]
    noise: float = 0.0
    cached: dict[str, list[int]] = field(default_factory=dict)
    differ: dict[str, list[int]] = field(default_factory=dict)
    controls: dict[int, float] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)

    @property
    def allowed(self) -> float:
        """Log-probability difference that counts as none."""
        return NOISE[RECIPES[self.model].engine["dtype"]]

    def compare(self, tier: str, answers: list[Any], cold: list[Any]) -> None:
        """Note what a tier gave, and for which lengths it is not the recompute's answer."""
        self.cached[tier] = [answer["cached"] for answer in answers]
        self.differ[tier] = []
        for answer, reference in zip(answers, cold, strict=True):
            apart = distance(answer, reference)
            self.noise = max(self.noise, apart if apart < self.allowed else 0.0)
            if apart >= self.allowed:
                self.differ[tier].append(answer["prompt_tokens"])

    def write(self) -> None:
        """Leave the row, for `lab.support`."""
        ROWS.mkdir(parents=True, exist_ok=True)
        row = {
            "model": self.model,
            "dtype": RECIPES[self.model].engine["dtype"],
            "groups": self.groups,
            "lengths": self.lengths,
            "noise": self.noise,
            "allowed": self.allowed,
            "cached": self.cached,
            "differ": self.differ,
            "controls": self.controls,
            "blind": {g: why for (model, g), why in BLIND.items() if model == self.model},
        }
        (ROWS / f"{self.model}.json").write_text(json.dumps(row, indent=1) + "\n")


def distance(one: Any, other: Any) -> float:
    """Largest difference of log-probabilities; infinite if a token differs."""
    if one["tokens"] != other["tokens"]:
        return float("inf")
    return max(abs(a - b) for a, b in zip(one["logprobs"], other["logprobs"], strict=True))


def ask(engine: Engine, *prompts: list[int]) -> list[Any]:
    """Each prompt on its own."""
    answers = [engine.ask(prompt)[0] for prompt in prompts]
    for answer, prompt in zip(answers, prompts, strict=True):
        answer["prompt_tokens"] = len(prompt)
    return answers


def together(engine: Engine, *prompts: list[int]) -> list[Any]:
    """All prompts in one batch."""
    answers = engine.ask(*prompts)
    for answer, prompt in zip(answers, prompts, strict=True):
        answer["prompt_tokens"] = len(prompt)
    return answers


def branch(prompt: list[int], seed: int) -> list[int]:
    """A prompt that leaves the given one after three quarters."""
    return prompt[: len(prompt) * 3 // 4] + prompt_ids(200, seed=seed)


def groups_of(root: Path) -> list[dict[str, Any]]:
    """The groups by which the engine's namespace describes itself."""
    (namespace,) = iter_namespaces(root)
    description = json.loads((namespace.path / "namespace.json").read_text())
    return list(description["covers"]["groups"])


def forge_group(root: Path, group: int, hashes: set[bytes]) -> int:
    """Forge one group's records of one prompt; how many there were."""
    (namespace,) = iter_namespaces(root)
    found = 0
    for number, file in enumerate(iter_records(namespace.path)):
        key = parse_file_name(file.path.name)
        if key is not None and group_of(key) == group and hash_of(key) in hashes:
            forge(file.path, seed=number)
            found += 1
    return found


def examine(
    model: str, lengths: tuple[int, ...], start: Any, root: Path, *, parting: bool
) -> Findings:
    """Cold, device, memory, storage; alone and in a batch; forged; and where prompts part ways."""
    ensure(model)
    found = Findings(model, lengths)
    prompts = [prompt_ids(length, seed=length) for length in lengths]
    batch = (prompts * 4)[:4]
    extra = {"path": str(root), "memory": "192MiB"}
    with start(model, extra) as writer:
        cold = ask(writer, *prompts)
        found.cached["cold"] = [answer["cached"] for answer in cold]
        found.compare("device", ask(writer, *prompts), cold)
        assert writer.do("idle")
        writer.do("reset_device")
        found.compare("memory", ask(writer, *prompts), cold)
        writer.do("reset_device")
        found.compare("batch", together(writer, *batch), (cold * 4)[:4])
        controls = [prompt_ids(CONTROL_TOKENS, seed=100 + g) for g in range(len(groups_of(root)))]
        true_controls = ask(writer, *controls)
        hashes = [set(map(bytes.fromhex, writer.do("hashes", prompt=p))) for p in controls]
        writer.ask(branch(prompts[0], seed=5))
        assert writer.do("idle")
    groups = groups_of(root)
    for group, known in enumerate(hashes):
        assert forge_group(root, group, known) > 0
    with start(model, extra) as reader:
        found.compare("storage", ask(reader, *prompts), cold)
        parted = ask(reader, branch(prompts[0], seed=6))
        forged = ask(reader, *controls)
    for group, (wrong, right) in enumerate(zip(forged, true_controls, strict=True)):
        assert wrong["cached"] > 0, f"group {group}: nothing was read"
        found.controls[group] = distance(wrong, right)
    found.groups = groups
    if parting:
        compare_with_device_alone(found, start, prompts[0], parted)
    return found


def compare_with_device_alone(
    found: Findings, start: Any, prompt: list[int], parted: list[Any]
) -> None:
    """What vLLM itself, without us, gives the third of three prompts that part ways; and its answer."""
    with start(found.model, {}) as alone:
        alone.ask(prompt)
        alone.ask(branch(prompt, seed=5))
        on_device = ask(alone, branch(prompt, seed=6))
        alone.do("reset_device")
        cold = ask(alone, branch(prompt, seed=6))
    assert cold[0]["cached"] == 0
    found.compare("branch on the device", on_device, cold)
    found.compare("branch from storage", parted, cold)


def judge(found: Findings) -> None:
    """The answers of all tiers are those of a recompute, and none reuses less than the device does."""
    assert set(found.cached["cold"]) == {0}
    for tier, lengths in found.differ.items():
        assert lengths == [], f"{tier}: other answers at these lengths"
    for tier in ("memory", "storage"):
        for length, here, device in zip(
            found.lengths, found.cached[tier], found.cached["device"], strict=True
        ):
            assert here >= device, f"{tier}: {here} of {length} tokens, the device's {device}"
    for stored, device in zip(
        found.cached.get("branch from storage", []),
        found.cached.get("branch on the device", []),
        strict=True,
    ):
        assert stored >= device, "a prefix's middle is reused less than on the device"
    for group, apart in found.controls.items():
        if (found.model, group) not in BLIND:
            assert apart > 2 * found.allowed, f"group {group}: forged bytes change nothing"


@pytest.mark.parametrize(
    "model", [name for name in ZOO if name not in COVERED_ELSEWHERE | LIKE_OTHERS]
)
def test_each_kind_briefly(model: str, start: Any, tmp_path: Path) -> None:
    judge(examine(model, FEW_LENGTHS, start, tmp_path / "kv", parting=False))


@pytest.mark.zoo
@pytest.mark.parametrize("model", ZOO)
def test_each_kind(model: str, start: Any, tmp_path: Path) -> None:
    found = examine(model, ALL_LENGTHS, start, tmp_path / "kv", parting=True)
    found.write()  # before it is judged: a row that says no is one too
    judge(found)


@pytest.mark.zoo
def test_latent_attention_comes_back_byte_for_byte(start: Any, tmp_path: Path) -> None:
    """Answers say nothing here: on a CPU without AMX its decode disagrees with its own prefill."""
    (model,) = BYTES_ONLY
    ensure(model)
    root = tmp_path / "kv"
    extra = {"path": str(root), "memory": "96MiB"}
    prompts = [prompt_ids(length, seed=length) for length in ALL_LENGTHS]
    settings = {"prefix_caching_anyway": True}
    found = Findings(model, ALL_LENGTHS)
    with start(model, extra, **settings) as writer:
        found.cached["cold"] = [answer["cached"] for answer in ask(writer, *prompts)]
        computed = [writer.do("pages", prompt=prompt) for prompt in prompts]
        found.cached["device"] = [answer["cached"] for answer in ask(writer, *prompts)]
        assert writer.do("idle")
        writer.do("reset_device")
        found.cached["memory"] = [answer["cached"] for answer in ask(writer, *prompts)]
        from_memory = [writer.do("pages", prompt=prompt) for prompt in prompts]
        hashes = [*map(bytes.fromhex, writer.do("hashes", prompt=prompts[-1]))]
    assert forge_group(root, 0, {hashes[0]}) == 1
    with start(model, extra, **settings) as reader:
        found.cached["storage"] = [answer["cached"] for answer in ask(reader, *prompts)]
        from_storage = [reader.do("pages", prompt=prompt) for prompt in prompts]
    for tier, pages in (("memory", from_memory), ("storage", from_storage)):
        found.differ[tier] = []
        for length, here, before, cached in zip(
            ALL_LENGTHS, pages, computed, found.cached[tier], strict=True
        ):
            # The last token is always computed again, and its entry written over what was loaded.
            blocks = min(cached, length - 1) // groups_of(root)[0]["tokens_per_block"]
            assert blocks == (length - 1) // 16
            if here[:blocks] != before[:blocks]:
                found.differ[tier].append(length)
    # The last prompt's first block was forged, and must be all that differs.
    assert found.differ == {"memory": [], "storage": [ALL_LENGTHS[-1]]}
    assert from_storage[-1][0] != computed[-1][0] and from_storage[-1][1:] == computed[-1][1:]
    found.differ["storage"] = []
    found.controls[0] = float("inf")
    found.groups = groups_of(root)
    found.write()


@pytest.mark.zoo
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_cannot_run_is_named(name: str, start: Any, tmp_path: Path) -> None:
    model = str(write_configuration(name, tmp_path / name))
    # It may start, and fail when it is asked.
    with pytest.raises(EngineError) as refusal, start(model, {}, engine=ENGINE) as engine:
        engine.ask(prompt_ids(1000, seed=1))
    errors = re.findall(r"(?:^|[ \]])(\w+Error: .+(?:\n  .+)?)", str(refusal.value), re.MULTILINE)
    ROWS.mkdir(parents=True, exist_ok=True)
    error = errors[-1] if errors else str(refusal.value)[:300]
    (ROWS / f"{name}.json").write_text(json.dumps({"model": name, "error": error}) + "\n")
