"""What engines are asked and seen to do decides how prompts are read; no answer of theirs fails a request."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.fleet.hashing import Recipe
from kvstrata.router.asking import ask
from kvstrata.router.chat import ChatTemplate
from kvstrata.router.conversation import Chat, tool_list
from kvstrata.router.files import ModelFiles
from kvstrata.router.reading import Read, Reading, reading_of
from kvstrata.router.replicas import Replica
from kvstrata.router.tokenizing import EngineTokenizer
from kvstrata.wire.batches import low_bits
from lab.models import ensure
from tests.unit.router.router_lab import fleet, run, until
from tests.unit.router.stub_engine import StubEngine, _send

RECIPE = Recipe("sha256", BlockHasher("sha256", 16).none_hash, 16)
TEXT = "A line of text.\n" * 100
TALK = [{"role": "user", "content": TEXT}]


class TellingEngine(StubEngine):
    """Also tells token ids, as a tokenizer and a template say, and where its model is."""

    cards: tuple[dict[str, Any], ...] = ()
    files: Path | None = None
    shift: int = 0
    slow: float = 0.0
    plain: bool = False

    @property
    def questions(self) -> list[dict[str, Any]]:
        return [json.loads(one.body) for one in self.posts if " /tokenize " in one.line]

    async def _get(self, target: str, writer: asyncio.StreamWriter) -> None:
        if target == "/v1/models" and self.cards:
            _send(writer, 200, {"data": list(self.cards)})
            await writer.drain()
        else:
            await super()._get(target, writer)

    async def _answer(self, seen: Any, writer: asyncio.StreamWriter) -> None:
        if " /tokenize " not in seen.line or self.plain:
            await super()._answer(seen, writer)
            return
        await asyncio.sleep(self.slow)
        asked = json.loads(seen.body)
        if self.files is None or (text := self._text(asked)) is None:
            _send(writer, 404 if self.files is None else 400, {})
        else:
            tokenizer = Tokenizer.from_file(str(self.files / "tokenizer.json"))
            ids = tokenizer.encode(text, add_special_tokens="prompt" in asked).ids
            _send(writer, 200, {"tokens": [one + self.shift for one in ids], "count": len(ids)})
        await writer.drain()

    def _text(self, asked: dict[str, Any]) -> str | None:
        if "prompt" in asked:
            return str(asked["prompt"])
        assert self.files is not None
        template = ChatTemplate.load(self.files)
        if template is None:
            return None
        tools = tool_list(asked.get("tools"))
        return template.render(Chat(asked["messages"], tools, form="string", calls=True))


def card(name: str, root: Path | str | None, parent: str | None = None) -> dict[str, Any]:
    return {"id": name, "root": None if root is None else str(root), "parent": parent}


@pytest.fixture(scope="module")
def files() -> Path:
    return ensure("llama")


def asked(path: str = "/v1/completions", **body: Any) -> Any:
    request = SimpleNamespace(path=path, headers=(), body=json.dumps(body).encode())
    return ask(request, "one")  # type: ignore[arg-type]


async def read(reading: Reading, **body: Any) -> Read:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return await reading.read(asked(path, **body), [RECIPE])


def bytes_of(found: Read) -> bytes:
    """The ids of the lab's tokenizer are bytes."""
    assert found.prompt.tokens is not None, found.prompt.doubt
    return bytes(one for one in found.prompt.tokens.tolist() if one < 256)


class Seen:
    """A reading that has seen what a router has seen."""

    def __init__(self, reading: Reading, *engines: StubEngine) -> None:
        self.reading = reading
        self._fleet = fleet(*engines)
        self._engines = engines

    async def __aenter__(self) -> "Seen":
        self.router = await self._fleet.__aenter__()
        await until(lambda: all(one.served for one in self.replicas))
        self.look()
        return self

    def look(self) -> None:
        for one in self.replicas:
            self.reading.saw(one)

    @property
    def replicas(self) -> list[Replica]:
        return list(self.router.application.replicas)

    async def tried(self) -> None:
        def all_tried() -> bool:
            self.look()  # as a router does: an engine that was too slow to answer is tried again
            return self.reading._models._tried.issuperset(one.name for one in self.replicas)

        await until(all_tried)

    async def __aexit__(self, *_: object) -> None:
        self.reading.close()
        await self._fleet.__aexit__(None, None, None)


def test_an_engine_is_asked_once_for_what_no_file_tells(files: Path) -> None:
    engine = TellingEngine()
    engine.cards, engine.files = (card("tiny", "org/tiny"),), files

    async def go() -> None:
        async with Seen(Reading(), engine) as seen:
            for _ in range(2):
                found = await read(seen.reading, model="tiny", prompt=TEXT)
                assert bytes_of(found).decode() == TEXT and not found.prompt.doubt
                hashes = found.hashes(engine.name, RECIPE)
                expected = BlockHasher("sha256", 16).hashes(found.prompt.tokens)
                assert hashes is not None and hashes.tolist() == [low_bits(h) for h in expected]
            assert len(engine.questions) == 1
            short = await read(seen.reading, model="tiny", prompt="short")
            assert short.prompt.tokens is None and "too short" in short.prompt.doubt
            assert len(engine.questions) == 1
            await read(seen.reading, model="tiny", messages=TALK)
            assert engine.questions[-1]["messages"] == TALK

    run(go())


def test_an_engine_that_does_not_tell_in_time_fails_nothing(files: Path) -> None:
    engine = TellingEngine()
    engine.cards, engine.files, engine.slow = (card("tiny", None),), files, 30.0

    async def go() -> None:
        reading = Reading(engine=EngineTokenizer(seconds=0.05, at_once=2))
        async with Seen(reading, engine) as seen:
            texts = [f"{number} {TEXT}" for number in range(4)]
            found = await asyncio.gather(*(read(seen.reading, prompt=one) for one in texts))
            assert all(one.prompt.tokens is None for one in found)
            doubts = [one.prompt.doubt for one in found]
            assert sum("within 0.05 s" in one for one in doubts) == 2
            assert sum("too many" in one for one in doubts) == 2

    run(go())


@pytest.mark.parametrize("plain", [False, True])
def test_an_engine_that_cannot_tell_is_not_asked_again_in_vain(plain: bool) -> None:
    engine = TellingEngine()
    engine.cards, engine.plain = (card("tiny", None),), plain

    async def go() -> None:
        async with Seen(Reading(), engine) as seen:
            for number in range(3):
                found = await read(seen.reading, prompt=f"{number} {TEXT}")
                assert found.prompt.tokens is None and "/tokenize" in found.prompt.doubt
            assert len(engine.questions) == (3 if plain else 1)

    run(go())


def test_files_that_give_what_the_engine_gives_are_used(files: Path) -> None:
    engine = TellingEngine()
    engine.cards, engine.files = (card("tiny", files),), files

    async def go() -> None:
        async with Seen(Reading(), engine) as seen:
            await seen.tried()
            before = len(engine.questions)
            found = await read(seen.reading, model="tiny", prompt=TEXT)
            assert bytes_of(found).decode() == TEXT
            assert len(engine.questions) == before
            seen.look()
            await seen.tried()
            assert len(engine.questions) == before  # and it is tried once in its life
            seen.reading.forget(engine.name)
            seen.look()
            await seen.tried()
            assert len(engine.questions) > before

    run(go())


@pytest.mark.parametrize("given", [False, True])
def test_files_that_give_something_else_are_not_used(files: Path, given: bool) -> None:
    engine = TellingEngine()
    engine.cards, engine.files, engine.shift = (card("tiny", files),), files, 1

    async def go() -> None:
        async with Seen(reading_of(str(files) if given else None), engine) as seen:
            await seen.tried()
            found = await read(seen.reading, model="tiny", prompt=TEXT)
            assert found.prompt.tokens is not None
            assert [one - 1 for one in found.prompt.tokens.tolist() if one <= 256] == [
                *TEXT.encode()
            ]

    run(go())


def test_one_engine_in_disagreement_is_enough(files: Path) -> None:
    engines = [TellingEngine("a"), TellingEngine("b")]
    for shift, engine in enumerate(engines):
        engine.cards, engine.files, engine.shift = (card("tiny", files),), files, shift

    async def go() -> None:
        async with Seen(Reading(), *engines) as seen:
            await seen.tried()
            _, believed = seen.reading._models.of("tiny", seen.replicas)
            assert not believed.text
            seen.reading.forget("b")
            _, believed = seen.reading._models.of("tiny", seen.replicas)
            assert believed.text

    run(go())


def test_given_files_are_used_before_any_engine_was_seen(files: Path) -> None:
    async def go() -> None:
        reading = reading_of(str(files))
        assert bytes_of(await read(reading, prompt=TEXT)).decode() == TEXT
        reading.close()

    run(go())


def test_an_adapters_blocks_are_hashed_with_its_name_and_path_at_each_replica() -> None:
    engines = [TellingEngine("a"), TellingEngine("b"), TellingEngine("c")]
    for engine, path in zip(engines, ("/here", "/here", "/there"), strict=True):
        engine.cards = (card("tiny", None), card("tuned", path, parent="tiny"))
    prompt = list(range(100))

    async def go() -> None:
        async with Seen(Reading(), *engines) as seen:
            found = await read(seen.reading, model="tuned", prompt=prompt)
            hasher = BlockHasher("sha256", 16)
            for engine, path in zip(engines, ("/here", "/here", "/there"), strict=True):
                expected = hasher.hashes(prompt, lora=("tuned", path))
                hashes = found.hashes(engine.name, RECIPE)
                assert hashes is not None and hashes.tolist() == [low_bits(h) for h in expected]
            assert found.hashes("a", RECIPE) is found.hashes("b", RECIPE)
            assert found.hashes("unseen", RECIPE) is None
            found = await read(seen.reading, model="tiny", prompt=prompt)
            plain = [low_bits(h) for h in hasher.hashes(prompt)]
            for name in ("a", "unseen"):
                hashes = found.hashes(name, RECIPE)
                assert hashes is not None and hashes.tolist() == plain

    run(go())


@pytest.mark.parametrize("root", ["openai/gpt-oss-20b", "/data/GPT_OSS-120b", "files"])
def test_chats_of_gpt_oss_are_not_asked_for(root: str, files: Path) -> None:
    engine = TellingEngine()
    engine.cards, engine.files = (card("tiny", root),), files

    async def go() -> None:
        made = Reading(ModelFiles(reading_of(str(files))._models._given.files.reader, harmony=True))
        async with Seen(made if root == "files" else Reading(), engine) as seen:
            await seen.tried()
            before = len(engine.questions)
            found = await read(seen.reading, model="tiny", messages=TALK)
            assert found.prompt.tokens is None and "gpt-oss" in found.prompt.doubt
            assert len(engine.questions) == before
            assert (await read(seen.reading, model="tiny", prompt=TEXT)).prompt.tokens is not None

    run(go())


def test_who_wants_the_prompts_probabilities_is_sent_by_its_length_alone() -> None:
    async def go() -> None:
        reading = Reading()
        found = await read(reading, prompt=list(range(99)), prompt_logprobs=1)
        assert found.prompt.tokens is not None and len(found.prompt.tokens) == 99
        assert found.some() is None and found.hashes("a", RECIPE) is None
        reading.close()

    run(go())
