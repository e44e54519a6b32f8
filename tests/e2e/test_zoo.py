"""Every kind of KV cache that runs on a CPU: the same answers from every tier, and proof that it matters.

One short examination a kind is part of all tests; the full one, over more lengths, is marked `zoo`. Each
leaves a row in build/zoo, of which `python -m lab.support` makes the table in docs/support.md.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from engine import Engine

from kvstrata.chunks.key import group_of, hash_of, parse_file_name
from kvstrata.testing.damage import forge
from kvstrata.tiers.catalog import iter_namespaces, iter_records
from lab.models import RECIPES, ensure, prompt_ids
from lab.support import ROWS, ZOO

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

    def write(self, groups: list[dict[str, Any]]) -> None:
        """Leave the row, for `lab.support`."""
        ROWS.mkdir(parents=True, exist_ok=True)
        row = {
            "model": self.model,
            "dtype": RECIPES[self.model].engine["dtype"],
            "groups": groups,
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


def branches(prompts: list[list[int]]) -> list[list[int]]:
    """Two prompts that leave the first one in its middle: the second can go on where the first left."""
    return [prompts[0][: len(prompts[0]) * 3 // 4] + prompt_ids(200, seed=seed) for seed in (5, 6)]


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


def examine(model: str, lengths: tuple[int, ...], start: Any, root: Path) -> Findings:
    """Cold, device, memory, storage; alone, in a batch and from a prefix's middle; and forged."""
    ensure(model)
    found = Findings(model, lengths)
    prompts = [prompt_ids(length, seed=length) for length in lengths]
    batch = (prompts * 4)[:4] if len(prompts) < 4 else prompts[:4]
    extra = {"path": str(root), "memory": "192MiB"}
    with start(model, extra) as writer:
        cold = ask(writer, *prompts)
        found.cached["cold"] = [answer["cached"] for answer in cold]
        found.compare("device", ask(writer, *prompts), cold)
        assert writer.do("idle")
        writer.do("reset_device")
        found.compare("memory", ask(writer, *prompts), cold)
        writer.do("reset_device")
        cold_batch = [cold[batch_index % len(cold)] for batch_index in range(4)]
        found.compare("batch", together(writer, *batch), cold_batch)
        controls = [prompt_ids(CONTROL_TOKENS, seed=100 + g) for g in range(len(groups_of(root)))]
        true_controls = ask(writer, *controls)
        hashes = [set(map(bytes.fromhex, writer.do("hashes", prompt=p))) for p in controls]
        parted = ask(writer, *branches(prompts))
        assert writer.do("idle")
    groups = groups_of(root)
    for group, known in enumerate(hashes):
        assert forge_group(root, group, known) > 0
    with start(model, extra) as reader:
        found.compare("storage", ask(reader, *prompts), cold)
        found.compare("branch from storage", ask(reader, *branches(prompts)), parted)
        forged = ask(reader, *controls)
    with start(model, {}) as alone:  # vLLM itself: what its device cache gives where prompts part
        ask(alone, prompts[0])
        found.compare("branch on the device", ask(alone, *branches(prompts)), parted)
    for group, (wrong, right) in enumerate(zip(forged, true_controls, strict=True)):
        assert wrong["cached"] > 0, f"group {group}: nothing was read"
        found.controls[group] = distance(wrong, right)
    found.write(groups)
    return found


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
        found.cached["branch from storage"], found.cached["branch on the device"], strict=True
    ):
        assert stored >= device, "a prefix's middle is reused less than on the device"
    for group, apart in found.controls.items():
        if (found.model, group) not in BLIND:
            assert apart > 2 * found.allowed, f"group {group}: forged bytes change nothing"


@pytest.mark.parametrize("model", [name for name in ZOO if name not in COVERED_ELSEWHERE])
def test_each_kind_briefly(model: str, start: Any, tmp_path: Path) -> None:
    judge(examine(model, FEW_LENGTHS, start, tmp_path / "kv"))


@pytest.mark.zoo
@pytest.mark.parametrize("model", ZOO)
def test_each_kind(model: str, start: Any, tmp_path: Path) -> None:
    judge(examine(model, ALL_LENGTHS, start, tmp_path / "kv"))
