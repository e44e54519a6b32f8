"""An engine whose every answer is a function of the request, so that a wrong or mixed-up one is seen.

Token n of an answer is ` MARK.n`, where MARK is a digest of the prompt. It caches prompts by whole blocks
as vLLM does, says in each answer how much of its prompt was cached, and publishes its blocks where it is
told to. As a program, `python honest_engine.py '{"port": 0, "name": "a", ...}'` prints its port; then
SIGUSR1 makes it answer 500 to all that comes, and SIGUSR2 ends that.
"""

import asyncio
import hashlib
import json
import signal
import sys
from typing import Any

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.wire.batches import low_bits
from kvstrata.wire.snapshot import EngineFacts, GroupFacts
from tests.unit.events.fake_publisher import FakeEngine
from tests.unit.router.stub_engine import Seen, StubEngine

BLOCK = 16
HASHER = BlockHasher("sha256", BLOCK)
FACTS = EngineFacts(
    "m", "sha256", HASHER.none_hash, BLOCK, BLOCK, (GroupFacts(0, "full", BLOCK, 1, 1024),), ""
)
_HOPS = ("transfer-encoding", "te", "upgrade", "trailer", "expect", "proxy-authorization")


def mark(prompt: Any) -> str:
    """The digest of a prompt."""
    return hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:12]


def text_for(prompt: Any, count: int) -> str:
    """The whole answer to a prompt, in `count` tokens."""
    return "".join(f" {mark(prompt)}.{n}" for n in range(count))


def streamed_text(body: bytes) -> str:
    """The text of the events of a stream that are whole; an error event ends it."""
    found = ""
    for event in body.split(b"\n\n")[:-1]:
        data = event.strip().removeprefix(b"data: ")
        if data and data != b"[DONE]":
            shown = json.loads(data)
            if "error" in shown:
                break
            found += "".join(one["text"] for one in shown["choices"])
    return found


class HonestEngine(StubEngine):
    """See above.

    Args:
        name: of the engine.
        events: address that is bound for events; None publishes nothing.
        replay: address that is bound for replays and snapshots.
        shown: addresses that its metrics tell, if those are others.
        slow: seconds before each answer and each token.
    """

    def __init__(
        self,
        name: str,
        events: str | None = None,
        replay: str | None = None,
        shown: tuple[str, str] | None = None,
        slow: float = 0.0,
    ) -> None:
        super().__init__(name)
        self.slow = slow
        self.held: set[bytes] = set()
        self.served = self.malformed = 0
        self.publisher = None
        told = shown or (events, replay)
        self.where = ""
        if events is not None:
            self.publisher = FakeEngine(events, replay, facts=FACTS)
            self.where = (
                f'vllm:kvstrata_endpoints{{events="{told[0]}",snapshots="{told[1]}"}} 1.0\n'
            )
        self._count()

    def _count(self) -> None:
        self.metrics = (
            f"{self.where}vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
            f"honest:served {self.served}\nhonest:malformed {self.malformed}\n"
        )

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.line.startswith("GET"):
            await super()._answer(seen, writer)
            return
        self.seen.clear()  # it may be large
        self.malformed += not well_formed(seen)
        self.served += 1
        self._count()
        await asyncio.sleep(self.slow)
        asked = json.loads(seen.body)
        if self.status or asked.get("wait"):
            await super()._answer(seen, writer)
            return
        prompt, count = asked.get("prompt"), asked.get("max_tokens", 4)
        cached = self.hold(prompt) if isinstance(prompt, list) else 0
        usage = {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": cached}}
        if not asked.get("stream"):
            choice = {"index": 0, "text": text_for(prompt, count), "finish_reason": "length"}
            data = json.dumps({"id": self.name, "choices": [choice], "usage": usage}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n%b" % (len(data), data))
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for number in range(count):
            _event(writer, {"choices": [{"index": 0, "text": f" {mark(prompt)}.{number}"}]})
            await writer.drain()
            await asyncio.sleep(asked.get("pause", 0) + self.slow)
        _event(writer, {"choices": [], "usage": usage})
        data = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        await writer.drain()

    def hold(self, prompt: list[int]) -> int:
        """Tokens of it that were cached; from now on all its whole blocks are."""
        cached = self.cached_of(prompt)
        new = [one for one in HASHER.hashes(prompt) if one not in self.held]
        self.held.update(new)
        if new and self.publisher is not None:
            names = [low_bits(one) for one in new]
            event = {"type": "BlockStored", "parent_block_hash": None, "token_ids": []}
            event |= {"block_size": 0, "lora_id": None, "medium": "GPU", "group_idx": 0}
            self.publisher.publish([{**event, "block_hashes": names}])
        return cached

    def cached_of(self, prompt: list[int]) -> int:
        """Tokens of a prompt that need not be computed: never the last one."""
        hashes = list(HASHER.hashes(prompt))
        found = 0
        while found < len(hashes) and hashes[found] in self.held:
            found += 1
        return min(found, (len(prompt) - 1) // BLOCK) * BLOCK

    async def stop(self) -> None:
        await super().stop()
        if self.publisher is not None:
            self.publisher.close()

    def fail(self, status: int) -> None:
        """Answer `status` to everything, or 0: answer again."""
        self.status, self.health = status, status or 200


def well_formed(seen: Seen) -> bool:
    """Whether a request is one that no server could read in another way."""
    lengths = seen.header("content-length")
    named = [name.lower() for name, _ in seen.headers]
    return (
        seen.line.count(" ") == 2
        and seen.line.endswith(" HTTP/1.1")
        and lengths == [str(len(seen.body))]
        and len(seen.header("host")) == 1
        and not any(one in named for one in _HOPS)
    )


def _event(writer: asyncio.StreamWriter, shown: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(shown).encode() + b"\n\n"
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def main() -> None:
    options = json.loads(sys.argv[1])
    port = options.pop("port", 0)
    engine = HonestEngine(**options)
    await engine.start(port)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, engine.fail, 500)
    loop.add_signal_handler(signal.SIGUSR2, engine.fail, 0)
    sys.stdout.write(f"{engine.port}\n")
    sys.stdout.flush()
    assert engine.server is not None
    await engine.server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
