"""Requests go where their prompt is, as the engines' own events tell it."""

import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.compiled import Kept, kept
from kvstrata.errors import ConfigError
from kvstrata.fleet.fleet import Fleet
from kvstrata.router.fleet_chooser import FleetChooser, follow
from kvstrata.router.preparing import MODULES
from kvstrata.router.reading import Read, Reading
from kvstrata.routing.decision import Decision
from kvstrata.routing.policies import make_policy
from kvstrata.wire.batches import low_bits
from kvstrata.wire.snapshot import EngineFacts, GroupFacts
from tests.unit.events.fake_publisher import FakeEngine
from tests.unit.router.router_lab import ask, fleet, run, until
from tests.unit.router.stub_engine import StubEngine

HASHER = BlockHasher("sha256", 16)
GROUPS = (GroupFacts(0, "full", 16, 1, 1024), GroupFacts(1, "window", 16, 1, 1024, 32))
FACTS = EngineFacts("m", "sha256", HASHER.none_hash, 16, 16, GROUPS, "names@place")


def prompt(number: int) -> list[int]:
    return [(7 * n + number) % 50_000 for n in range(16 * 200 + 3)]


def stored(tokens: list[int], medium: str, **more) -> list[dict]:
    hashes = [low_bits(value) for value in HASHER.hashes(tokens)]
    common = {"type": "BlockStored", "parent_block_hash": None, "token_ids": [], "block_size": 0}
    return [
        {
            **common,
            "block_hashes": hashes,
            "lora_id": None,
            "medium": medium,
            "group_idx": g,
            **more,
        }
        for g in (0, 1)
    ]


class Following:
    """Two replicas whose events are followed, and the decisions that were made."""

    def __init__(self, at: Callable[[str], str]) -> None:
        self.events = {name: FakeEngine(at(name), at(f"{name}r"), facts=FACTS) for name in "ab"}
        self.engines = [
            StubEngine(
                name,
                metrics=f'vllm:kvstrata_endpoints{{events="{at(name)}",snapshots="{at(name + "r")}"}} 1.0\n',
            )
            for name in "ab"
        ]
        self.fleet = Fleet()
        self.chooser = FleetChooser(make_policy("seconds"), self.fleet, Reading())
        self.decisions: list[Decision] = []
        decide = self.chooser._policy.decide

        def deciding(request, candidates, now) -> Decision:
            self.decisions.append(decide(request, candidates, now))
            return self.decisions[-1]

        self.chooser._policy.decide = deciding  # type: ignore[method-assign]

    def close(self) -> None:
        self.chooser.close()
        for engine in self.events.values():
            engine.close()

    async def synced(self) -> None:
        await until(lambda: len(self.fleet.replicas) == 2 and self.fleet.settled)
        await until(lambda: all(one.facts for one in self.fleet.replicas))


@pytest.fixture
def following() -> Iterator[Following]:
    with tempfile.TemporaryDirectory(prefix="kv") as directory:
        made = Following(lambda name: f"ipc://{directory}/{name}")
        made.chooser.start()
        yield made
        made.close()


def test_a_prompt_goes_to_the_replica_that_holds_it(following: Following) -> None:
    for number, name in enumerate("ab"):
        following.events[name].publish(stored(prompt(number), "GPU"))
        following.events[name].settle()

    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await following.synced()
            for number in (0, 1, 1, 0):
                got = await ask(router, {"model": "tiny", "prompt": prompt(number)})
                assert got.headers["x-kvstrata-replica"] == "ab"[number]
                by_name = {one.replica: one for one in following.decisions[-1].considered}
                assert by_name["ab"[number]].device_tokens == 3200
                assert by_name["ba"[number]].device_tokens == 0

    run(go())


def test_what_lies_on_storage_counts_for_every_replica_that_mounts_it(following: Following) -> None:
    following.events["a"].publish(stored(prompt(5), "STORAGE", ownership="names@place"))
    following.events["a"].settle()

    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await following.synced()
            await ask(router, {"model": "tiny", "prompt": prompt(5)})
            reached = [one.reuse.storage.tokens for one in following.decisions[-1].considered]
            assert reached == [3200, 3200]

    run(go())


def test_a_prompt_that_cannot_be_read_is_routed_all_the_same(following: Following) -> None:
    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await following.synced()
            for body in (
                {"prompt": "text"},
                {"prompt": ["a", "b"]},
                {"prompt": {"no": "prompt"}},
                {},
            ):
                assert (await ask(router, {"model": "tiny", **body})).status == 200
            got = await ask(router, {"model": "tiny", "messages": []}, "/v1/chat/completions")
            assert got.status == 200
            assert all(one.reuse is None for one in following.decisions[-1].considered)

    run(go())


def test_a_replica_that_is_removed_is_followed_no_longer(following: Following) -> None:
    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await following.synced()
            router.application.replicas.remove("a")
            await until(lambda: [one.name for one in following.fleet.replicas] == ["b"])
            assert (await ask(router, {"model": "tiny", "prompt": prompt(1)})).status == 200

    run(go())


def prompts_alive() -> int:
    gc.collect()
    return sum(isinstance(one, Read) for one in gc.get_objects())


def test_prompts_do_not_pile_up(following: Following) -> None:
    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await following.synced()
            for number in range(5):
                await ask(router, {"model": "tiny", "prompt": prompt(number)})
            await until(lambda: not any(one.in_flight for one in router.application.replicas))
            assert prompts_alive() == 0

    run(go())


def test_a_router_of_such_a_policy_follows_by_itself(following: Following) -> None:
    assert kept(MODULES) is Kept.ALL  # by the fixture; otherwise it would go by load for a minute
    following.events["b"].publish(stored(prompt(3), "GPU"))
    following.events["b"].settle()

    async def go() -> None:
        async with fleet(*following.engines, policy="tier-weighted") as router:
            chooser = router.application.chooser
            assert isinstance(chooser, FleetChooser)
            await until(lambda: chooser._fleet.settled and len(chooser._candidates.recipes()) == 1)
            await until(lambda: all(one.facts for one in chooser._fleet.replicas))
            for _ in range(3):
                got = await ask(router, {"model": "tiny", "prompt": prompt(3)})
                assert got.headers["x-kvstrata-replica"] == "b"

    run(go())


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        follow(make_policy("seconds"), str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        follow(make_policy("seconds"), str(tmp_path))
