"""What offload costs an engine that decodes: inter-token latency with it and without, and during a load.

Two servers, one with offload (arena and files) and one without, take turns, round by round: eight streams
of short prompts decode side by side, and the gaps between their tokens are noted at the client while all
eight decode. Answers are stored as well, so a stream stores a block every 128 tokens. Then, on the server
with offload, a request whose 32K tokens lie in files comes in the middle of a round. There are two such
prompts, and room for one in arena and device, so that each pushes the other out; the engine's answer and its
counters confirm that it was loaded from files.

Processor seconds for each token, from the kernel's accounts of the server's processes, say what offload
costs where the machine is too noisy for milliseconds.
"""

import argparse
import asyncio
import itertools
import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import psutil
from rich.console import Console

from lab import report
from lab.bench.results import DIRECTORY, Samples, add, save, spread
from lab.bench.ttft import arena_bytes
from lab.exclusive import exclusive
from lab.models import ensure, prompt_ids
from lab.server import EngineServer

MODEL = "llama-bench"
STREAMS = 8
PROMPT = 100
LONG = 32768
LONG_SEEDS = (1, 2)
OTHERS = 6144
"""Tokens of room beside the long prompt, on the device and in the arena: the streams' own and no more,
so that not much of the other long prompt stays."""
NOTES = {
    "slowdown_percent": "median gap between tokens with offload over without, medians of paired rounds",
    "p99_slowdown_percent": "the same of the 99th percentile",
    "processor_slowdown_percent": "processor seconds a token with offload over without",
    "decode_slowdown_during_load_percent": "time a token of the eight streams between a 32K request and its "
    "answer, over that in the same round before it came",
    "from_files_percent": "of those requests' tokens; the rest was in memory or on the device still",
    "load_ms": "from that request to its answer",
    "samples": "milliseconds by server and round; processor: milliseconds a token",
}


@dataclass
class Streams:
    """Eight answers under way, and when their tokens came.

    Attributes:
        stamps: by stream, seconds on the client's monotonic clock.
    """

    port: int
    tokens: int
    seed: int
    stamps: list[list[float]] = field(default_factory=lambda: [[] for _ in range(STREAMS)])

    def run(self) -> None:
        """Ask, and return when all have ended."""
        asyncio.run(self._all())

    async def _all(self) -> None:
        limits = httpx2.Limits(max_connections=STREAMS)
        base = f"http://127.0.0.1:{self.port}"
        async with httpx2.AsyncClient(
            base_url=base, timeout=180.0, trust_env=False, limits=limits
        ) as client:
            await asyncio.gather(*(self._one(client, number) for number in range(STREAMS)))

    async def _one(self, client: httpx2.AsyncClient, number: int) -> None:
        body = {
            "model": MODEL,
            "prompt": list(prompt_ids(PROMPT, seed=self.seed * STREAMS + number)),
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        stamps = self.stamps[number]
        async with client.stream("POST", "/v1/completions", json=body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    new = sum(
                        len(c.get("token_ids") or ()) for c in json.loads(line[6:])["choices"]
                    )
                    stamps += [time.perf_counter()] * new

    @property
    def window(self) -> tuple[float, float]:
        """From when all decode to when the first has ended."""
        return max(s[0] for s in self.stamps), min(s[-1] for s in self.stamps)

    def gaps(self) -> list[float]:
        """Milliseconds between a stream's tokens while all decode."""
        begin, end = self.window
        return [
            (b - a) * 1e3
            for stamps in self.stamps
            for a, b in itertools.pairwise(stamps)
            if a >= begin and b <= end
        ]

    def pace(self, begin: float, end: float) -> float:
        """Milliseconds a token and stream, between two moments."""
        count = sum(begin <= stamp <= end for stamps in self.stamps for stamp in stamps)
        return (end - begin) * 1e3 * STREAMS / max(count, 1)


def processor_seconds(pid: int) -> float:
    """User and system seconds of a server and its processes."""
    leader = psutil.Process(pid)
    times = [process.cpu_times() for process in [leader, *leader.children(recursive=True)]]
    return sum(float(t.user + t.system) for t in times)


def decode(server: EngineServer, name: str, tokens: int, seed: int, samples: Samples) -> None:
    """One round of eight streams."""
    before = processor_seconds(server.pid)
    streams = Streams(server.port, tokens, seed)
    streams.run()
    used = processor_seconds(server.pid) - before
    gaps = streams.gaps()
    add(samples, f"{name} gap p50", statistics.median(gaps))
    add(samples, f"{name} gap p99", float(np.percentile(gaps, 99)))
    add(samples, f"{name} processor", used * 1e3 / tokens / STREAMS)


def decode_and_load(
    server: EngineServer, tokens: int, seed: int, long_seed: int, samples: Samples
) -> None:
    """A round in whose middle a long request comes.

    Raises:
        RuntimeError: it was computed instead, or came when the streams had ended.
    """
    server.client.reset_prefix_cache()
    streams = Streams(server.port, tokens, seed)
    thread = threading.Thread(target=streams.run)
    thread.start()
    while min(len(stamps) for stamps in streams.stamps) < tokens // 4 and thread.is_alive():
        time.sleep(0.01)
    sent = time.perf_counter()
    answer = server.client.complete(prompt_ids(LONG - 20, seed=long_seed), 1)
    answered = time.perf_counter()
    thread.join()
    begin, end = streams.window
    if answer.cached_tokens < LONG * 0.9 or answered > end:
        raise RuntimeError(
            f"the load of {LONG} tokens brought {answer.cached_tokens}, and ended "
            f"{answered - end:+.1f} s after the streams"
        )
    pace, before = streams.pace(sent, answered), streams.pace(begin, sent)
    add(samples, "during load pace", pace)
    add(samples, "before load pace", before)
    add(samples, "load slowdown percent", (pace / before - 1) * 100)
    add(samples, "load", (answered - sent) * 1e3)


def figures(samples: Samples) -> dict[str, float]:
    """Medians of the rounds' ratios."""

    def over(what: str) -> float:
        pairs = zip(samples[f"on {what}"], samples[f"off {what}"], strict=True)
        return (statistics.median(on / off for on, off in pairs) - 1) * 100

    found = {
        "slowdown_percent": over("gap p50"),
        "p99_slowdown_percent": over("gap p99"),
        "processor_slowdown_percent": over("processor"),
    }
    if "load" in samples:
        found["decode_slowdown_during_load_percent"] = statistics.median(
            samples["load slowdown percent"]
        )
        found["from_files_percent"] = samples["from files percent"][0]
        found["load_ms"] = statistics.median(samples["load"])
    return found


def make(name: str, directory: Path, threads: int) -> EngineServer:
    """A server with offload, or without."""
    room = arena_bytes(MODEL, LONG + OTHERS)
    return EngineServer(
        MODEL,
        DIRECTORY / f"interference-{name}.log",
        kv={"path": str(directory), "memory": room} if name == "on" else None,
        max_model_len=LONG + 1024,
        device_bytes=room,
        threads=threads,
        arguments=("--max-num-seqs", str(STREAMS + 2)),
        patience=300.0,
    )


def measure(rounds: int, tokens: int, loads: int, threads: int, console: Console) -> Samples:
    """Everything, in turn."""
    directory = DIRECTORY / "interference"
    shutil.rmtree(directory, ignore_errors=True)
    samples: Samples = {}
    with make("on", directory, threads) as on, make("off", directory, threads) as off:
        servers = {"on": on, "off": off}
        for name, server in servers.items():
            decode(server, f"warm {name}", tokens // 4, 999, samples)
        for number in range(rounds):
            order = ("on", "off") if number % 2 else ("off", "on")
            for name in order:
                decode(servers[name], name, tokens, number, samples)
            console.print(
                f"round {number + 1} of {rounds}: gaps {samples['on gap p50'][-1]:.2f} with, "
                f"{samples['off gap p50'][-1]:.2f} ms without"
            )
        off.stop()
        if loads:
            load(on, loads, tokens, samples, console)
    shutil.rmtree(directory, ignore_errors=True)
    return samples


def load(on: EngineServer, loads: int, tokens: int, samples: Samples, console: Console) -> None:
    """Compute the long prompts, then load them while others decode.

    Raises:
        RuntimeError: they did not come from files.
    """
    name = "vllm:kvstrata_tokens_total{tier=filesystem}"
    for seed in LONG_SEEDS:
        begun = time.monotonic()
        on.client.complete(prompt_ids(LONG - 20, seed=seed), 1)
        console.print(f"a prompt of {LONG} tokens computed in {time.monotonic() - begun:.0f} s")
    on.wait_idle()
    before = on.client.metrics().get(name, 0.0)
    for number in range(loads):
        long_seed = LONG_SEEDS[number % len(LONG_SEEDS)]
        decode_and_load(on, tokens * 2, 100 + number, long_seed, samples)
    on.wait_idle()
    brought = on.client.metrics().get(name, 0.0) - before
    add(samples, "from files percent", brought * 100 / loads / LONG)
    if brought < loads * LONG / 2:
        raise RuntimeError(f"only {brought:.0f} tokens of {loads} loads came from files")


def show(samples: Samples, found: dict[str, float], console: Console) -> None:
    """Medians and spreads, and the figures."""
    for case, values in samples.items():
        if not case.startswith("warm"):
            console.print(f"  {case:24} {spread(values)}")
    for name, value in found.items():
        console.print(f"  {name} = {value:.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="that a stream decodes in a round")
    parser.add_argument("--loads", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that compute")
    chosen = parser.parse_args(arguments)
    console = Console()
    ensure(MODEL)
    with exclusive(report.MEASURING):
        samples = measure(chosen.rounds, chosen.tokens, chosen.loads, chosen.threads, console)
    found = figures(samples)
    show(samples, found, console)
    console.print(f"written to {save('interference', found, NOTES, samples)}")


if __name__ == "__main__":
    main()
