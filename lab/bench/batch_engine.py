"""One server of `lab.bench.batch_load`, and how a whole batch is given to it at once."""

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx2

from lab.bench.batch_shape import BLOCK, FORGET, HOLD, PROBE, Batch, bytes_needed, load_of
from lab.bench.page_cache import drop_pages
from lab.models import prompt_ids
from lab.recipes import RECIPES
from lab.server import EngineServer

QUEUE_SECONDS = 60.0
REQUEST_SECONDS = 300.0
READ_BYTES = "vllm:kvstrata_bytes_total{direction=read,tier=filesystem}"
USAGE = "vllm:kv_cache_usage_perc{}"
SPARE_BLOCKS = 3
"""Of a prompt: its last token's block in every group, and what a step takes in advance."""


class BatchError(Exception):
    """A batch was not served from where it should have been; its times say nothing."""


class BatchEngine:
    """A server with the probe, that has stored a batch of prompts.

    Args:
        model: one of the wide recipes.
        mode: "on" or "off": vLLM's hybrid KV cache manager.
        directory: for files, log and events; emptied.
        prompts: of the batch.
        tokens: of a prompt before its last token, which is never loaded; a multiple of the chunk.
        blocks_per_chunk: vLLM's option.

    Attributes:
        needed: bytes that the load of the batch needs.
        device_bytes: of the device's cache.
    """

    def __init__(
        self,
        model: str,
        mode: str,
        directory: Path,
        prompts: int,
        tokens: int,
        blocks_per_chunk: int = 1,
    ) -> None:
        recipe = RECIPES[model]
        self.mode = mode
        self.model = model
        self._files = directory / mode
        self._events = directory / f"{mode}.events"
        self._log = directory / f"{mode}.log"
        for path in (self._files, self._events, self._log):
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                path.unlink()
        self._prompts = [prompt_ids(tokens + 1, seed=1000 + index) for index in range(prompts)]
        self._tokens = tokens
        hybrid = mode == "on"
        self.needed = prompts * bytes_needed(recipe, tokens, hybrid)
        spare = prompts * SPARE_BLOCKS * bytes_needed(recipe, BLOCK, hybrid)
        self.device_bytes = self.needed + spare
        arena = self.needed + spare
        transfer = {
            "kv_connector": "ProbedConnector",
            "kv_connector_module_path": "lab.bench.batch_probe",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "path": str(self._files),
                "memory": arena,
                "store_queue": arena // 2,
                "blocks_per_chunk": blocks_per_chunk,
            },
        }
        self._server = EngineServer(
            model,
            self._log,
            hybrid=hybrid,
            max_model_len=tokens + 4 * BLOCK,
            device_bytes=self.device_bytes,
            threads=os.cpu_count() or 1,
            arguments=[
                *("--kv-transfer-config", json.dumps(transfer)),
                *("--max-num-seqs", str(max(prompts, 8))),
            ],
            environment={PROBE: str(self._events)},
        )
        self._http = httpx2.Client(
            base_url=f"http://127.0.0.1:{self._server.port}",
            timeout=REQUEST_SECONDS,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        self._server.start()
        self._server.warm_up()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._server.stop()
        shutil.rmtree(self._files, ignore_errors=True)

    def fill(self) -> None:
        """Compute and store every prompt, one after the other."""
        for prompt in self._prompts:
            if self._server.client.complete(prompt, 1).cached_tokens:
                raise BatchError("a prompt was known before it was first asked")
        self._server.wait_idle()
        os.sync()

    def measure(self, case: str, hold: bool) -> Batch:
        """One batch, all prompts at once, with the device's cache empty.

        Args:
            case: one of `batch_shape.CASES`: where the chunks are.
            hold: compute nothing before everything is loaded.

        Raises:
            BatchError: the batch did not come from there, or not whole.
        """
        if case != "memory":
            self._post({"prompt": [1, 2, 3], "kv_transfer_params": {FORGET: True}})
        if case == "storage_cold":
            drop_pages(self._files)
        self._server.client.reset_prefix_cache()
        before = self._read_bytes()
        noted = self._events.stat().st_size
        ttft_ms = self._batch(1, hold)
        lines = self._events.read_text()[noted:].splitlines()  # before the next request of ours
        read = self._read_bytes() - before
        try:
            load_ms, loaded = load_of(lines, len(self._prompts))
        except ValueError as error:
            raise BatchError(f"{case}: {error}") from error
        if loaded < self.needed or read < (0 if case == "memory" else self.needed):
            raise BatchError(f"{case}: {loaded} bytes loaded, {read} from files, of {self.needed}")
        return Batch(load_ms, ttft_ms, loaded, read)

    def resident_bytes(self) -> float:
        """Bytes of device cache that vLLM says are in use while all prompts are on the device."""
        highest = 0.0
        done = threading.Event()

        def watch() -> None:
            nonlocal highest
            while not done.is_set():
                highest = max(highest, self._server.client.metrics().get(USAGE, 0.0))
                time.sleep(0.01)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            self._batch(8, hold=True)
        finally:
            done.set()
            watcher.join()
        return highest * self.device_bytes

    def _batch(self, max_tokens: int, hold: bool) -> float:
        """Give all prompts to the paused engine, let it go, and wait.

        Returns:
            Milliseconds until the last one's first token.
        """
        count = len(self._prompts)
        noted = self._events.stat().st_size
        self._http.post(
            "/pause", params={"mode": "keep", "clear_cache": "false"}
        ).raise_for_status()
        first: dict[int, float] = {}
        body = {
            "prompt": self._prompts,
            "max_tokens": max_tokens,
            "kv_transfer_params": {HOLD: count} if hold else {},
        }
        asker = threading.Thread(target=self._stream, args=(body, first))
        asker.start()
        deadline = time.monotonic() + QUEUE_SECONDS
        while self._events.read_text()[noted:].count('"queued"') < count:
            if time.monotonic() > deadline:
                raise BatchError("the batch did not reach the engine")
            time.sleep(0.02)
        time.sleep(0.2)  # what the engine still does for the arrivals is no part of the load
        begun = time.monotonic()
        self._http.post("/resume").raise_for_status()
        asker.join()
        if len(first) < count:
            raise BatchError(f"{len(first)} of {count} prompts were answered")
        return (max(first.values()) - begun) * 1000

    def _stream(self, body: dict[str, Any], first: dict[int, float]) -> None:
        """Ask, and note when each prompt's first token comes."""
        with self._http.stream(
            "POST", "/v1/completions", json=self._body(body) | {"stream": True}
        ) as reply:
            for line in reply.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                for choice in event.get("choices", ()):
                    first.setdefault(choice["index"], time.monotonic())

    def _post(self, body: dict[str, Any]) -> None:
        self._http.post("/v1/completions", json=self._body(body)).raise_for_status()

    def _body(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model,
            "max_tokens": 1,
            "temperature": 0,
            "ignore_eos": True,
            **body,
        }

    def _read_bytes(self) -> int:
        """Bytes read from files so far."""
        self._server.warm_up(8)  # the engine publishes its counters when it steps
        return int(self._server.client.metrics().get(READ_BYTES, 0))
