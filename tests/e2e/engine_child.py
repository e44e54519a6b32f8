"""A real engine in this process that does what it is told: one JSON command a line in, one answer out.

`python tests/e2e/engine_child.py '{"model": NAME, "extra": {...}}'` serves one engine;
`… --fork SOCKET` forks one for each connection. See `engine.py` for the other side.
"""

import collections
import dataclasses
import hashlib
import importlib
import json
import os
import signal
import socket
import sys
import time
from typing import Any, TextIO

# vLLM reads these when it is imported.
os.environ.update(
    OMP_NUM_THREADS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    HF_HUB_OFFLINE="1",
)

import torch
from vllm import LLM, SamplingParams
from vllm.config import KVEventsConfig
from vllm.v1.metrics.reader import Counter, Gauge

from lab.models import RECIPES, ensure
from lab.text_only import register_qwen3_5

PRELOADED = (
    "kvstrata.vllm_plugin.connector",
    "vllm.model_executor.models.gemma3",
    "vllm.model_executor.models.gpt_oss",
    "vllm.model_executor.models.llama",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.worker.cpu_worker",
)
CONNECTOR = {
    # By name alone: the package's entry point makes it known. The demo gives the module path.
    "kv_connector": "KVStrataConnector",
    "kv_role": "kv_both",
}


class Child:
    """The engine and its commands; each method without underscore is one."""

    def __init__(self, settings: dict[str, Any]) -> None:
        if settings.get("unguarded"):
            # A negative control: what would be stored if nobody compared blocks with chunks.
            from kvstrata.vllm_plugin.manager import KVStrataManager

            KVStrataManager.check_store = lambda *_: None
        recipe = RECIPES.get(settings["model"])
        if recipe is not None and recipe.family == "qwen3_5":
            register_qwen3_5()
        if settings.get("prefix_caching_anyway"):
            self._keep_prefix_caching()
        events = settings.get("events")
        self._llm = LLM(
            # A directory stands for a model that has no recipe.
            model=str(ensure(settings["model"])) if recipe else settings["model"],
            enforce_eager=True,
            max_model_len=settings.get("max_model_len", 4096),
            max_num_seqs=4,
            kv_cache_memory_bytes=settings.get("device_bytes", 64 << 20),
            enable_prefix_caching=True,
            distributed_executor_backend="uni",
            disable_log_stats=False,
            # Without any of our options: the engine's own device cache alone.
            kv_transfer_config=(
                {**CONNECTOR, "kv_connector_extra_config": settings["extra"]}
                if settings["extra"]
                else None
            ),
            kv_events_config=KVEventsConfig(enable_kv_cache_events=True, **events)
            if events
            else None,
            **{**(recipe.engine if recipe else {}), **settings.get("engine", {})},
        )

    @staticmethod
    def _keep_prefix_caching() -> None:
        """Latent attention on a CPU without AMX: vLLM turns prefix caching off, and we want its bytes."""
        from vllm.platforms import current_platform

        checked = current_platform.check_and_update_config

        def check(config: Any) -> None:
            checked(config)
            config.cache_config.enable_prefix_caching = True

        type(current_platform).check_and_update_config = staticmethod(check)

    def ask(
        self, prompts: list[list[int]], max_tokens: int = 16, salt: str | None = None
    ) -> list[dict[str, Any]]:
        """Greedy answers: token ids, log-probability of each, prompt tokens that were cached."""
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=1)
        salted = {"cache_salt": salt} if salt is not None else {}
        requests = [{"prompt_token_ids": prompt, **salted} for prompt in prompts]
        begun = time.monotonic()
        answers = self._llm.generate(requests, sampling, use_tqdm=False)
        return [
            {
                "tokens": list(answer.outputs[0].token_ids),
                "logprobs": [
                    step[token].logprob
                    for step, token in zip(
                        answer.outputs[0].logprobs, answer.outputs[0].token_ids, strict=True
                    )
                ],
                "cached": answer.num_cached_tokens,
                "seconds": time.monotonic() - begun,
            }
            for answer in answers
        ]

    def hashes(self, prompt: list[int]) -> list[str]:
        """Block hashes of a prompt's whole blocks, hexadecimal, as this engine computes them."""
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        config = self._scheduler().vllm_config.cache_config
        hasher = get_request_block_hasher(
            self._scheduler().connector.scheduler.config.tokens_per_hash,
            get_hash_fn_by_name(config.prefix_caching_hash_algo),
        )
        request = Request("hashes", prompt, SamplingParams(), None, block_hasher=hasher)
        return [value.hex() for value in request.block_hashes]

    def pages(self, prompt: list[int]) -> list[list[str]]:
        """Digest of each layer's page of each whole block of a prompt that the device cache holds."""
        pool = self._scheduler().kv_cache_manager.block_pool
        model_runner = self._core().model_executor.driver_worker.worker.model_runner
        found = []
        for text in self.hashes(prompt):
            blocks = pool.get_cached_block(bytes.fromhex(text), [0])
            if blocks is None:
                break
            pages = [layer[blocks[0].block_id] for layer in model_runner.kv_caches]
            found.append([hashlib.sha256(page.numpy().tobytes()).hexdigest() for page in pages])
        return found

    def reset_device(self) -> bool:
        """Empty the device's prefix cache, and nothing else."""
        return self._llm.reset_prefix_cache()

    def reset_all(self) -> bool:
        """Empty every tier of this engine, as after a change of weights."""
        return self._llm.reset_prefix_cache(reset_connector=True)

    def call_workers(self, method: str, **arguments: Any) -> None:
        """What `collective_rpc` asks of the workers."""
        self._llm.collective_rpc(method, kwargs=arguments)

    def change_some_weights(self) -> None:
        """A method of somebody's own that changes weights, as vLLM cannot know."""

        def change(worker: Any) -> None:
            with torch.inference_mode():
                for name, weight in worker.model_runner.get_model().named_parameters():
                    if "norm" in name:
                        weight.add_(0.5)

        self._llm.collective_rpc(change)

    def sleep_and_wake(self, level: int) -> None:
        """Sleep, and wake up again."""
        self._llm.sleep(level=level)
        self._llm.wake_up()

    def begin(self, prompt: list[int], max_tokens: int, steps: int) -> int:
        """Begin to answer and take some steps; returns the tokens so far. `finish` goes on."""
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        engine = self._llm.llm_engine
        engine.add_request("begun", {"prompt_token_ids": prompt}, sampling)
        outputs = [output for _ in range(steps) for output in engine.step()]
        return len(outputs[-1].outputs[0].token_ids) if outputs else 0

    def finish(self) -> list[int]:
        """The whole answer that was begun."""
        engine = self._llm.llm_engine
        tokens: list[int] = []
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens = list(output.outputs[0].token_ids)
        return tokens

    def namespace(self) -> str:
        """Name of the directory that the engine uses now."""
        return self._scheduler().connector._manager._namespace.directory_name

    def idle(self, seconds: float = 60.0) -> bool:
        """Step until nothing is being stored any more; whether that came in time."""
        scheduler = self._scheduler()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not scheduler.has_requests():
                return True
            self._llm.llm_engine.step()
            time.sleep(0.001)
        return False

    def published(self) -> int:
        """Sequence number of the last batch of events, which has been sent by now; -1 for none."""
        publisher = self._scheduler().kv_event_publisher
        publisher._event_queue.join()
        return publisher._buffer[-1][0] if publisher._buffer else -1

    def device_blocks(self) -> list[list[int]]:
        """Group, low 64 bits of the hash and count of each block that the device's cache can give."""
        from vllm.v1.core.kv_cache_utils import get_block_hash, get_group_id

        pool = self._scheduler().kv_cache_manager.block_pool
        keys = [block.block_hash for block in pool.blocks if block.block_hash is not None]
        found = collections.Counter(
            (get_group_id(key), int.from_bytes(get_block_hash(key)[-8:], "big")) for key in keys
        )
        return [[group, value, count] for (group, value), count in found.items()]

    def forget_memory(self) -> None:
        """Empty the memory tier, so that what comes next comes from storage; the namespace stays."""
        memory = self._scheduler().connector._manager.cache.memory
        for key in list(memory.scan()):
            memory.remove(key)

    def memory_chunks(self) -> list[str]:
        """Keys of the chunks that the memory tier can give, hexadecimal."""
        return [key.hex() for key in self._scheduler().connector._manager.cache.memory.scan()]

    def shape(self) -> dict[str, Any]:
        """Sizes of the engine's groups, as the connector knows them."""
        scheduler = self._scheduler()
        return {
            "hash_tokens": scheduler.connector.scheduler.config.tokens_per_hash,
            "block_tokens": scheduler.block_size,
            "groups": [dataclasses.asdict(group) for group in scheduler.connector._geometries],
        }

    def metrics(self) -> dict[str, float]:
        """Our metrics: `name{label values}` without the prefix, as vLLM publishes them."""
        self._llm.llm_engine.step()
        found: dict[str, float] = {}
        for metric in self._llm.get_metrics():
            if isinstance(metric, Counter | Gauge) and metric.name.startswith("vllm:kvstrata_"):
                labels = {
                    k: v for k, v in metric.labels.items() if k not in ("engine", "model_name")
                }
                text = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
                found[metric.name.removeprefix("vllm:kvstrata_") + f"{{{text}}}"] = metric.value
        return found

    def stop(self) -> None:
        """Shut the engine down as a server does on SIGTERM."""
        self._llm.llm_engine.engine_core.shutdown()

    def _scheduler(self) -> Any:
        return self._core().scheduler

    def _core(self) -> Any:
        return self._llm.llm_engine.engine_core.engine_core


def serve(settings: dict[str, Any], commands: TextIO, answers: TextIO) -> None:
    """Make an engine and serve commands until their stream ends."""
    try:
        child = Child(settings)
    except Exception as error:  # boundary: the parent shows why the engine did not start
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        raise
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in commands:
        command = json.loads(line)
        result = getattr(child, command["do"])(**command.get("with", {}))
        print(json.dumps({"result": result}), file=answers, flush=True)


def fork_for_each(listener: socket.socket) -> None:
    """One forked child for each connection: importing vLLM, the slow part of a start, is done once."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: no zombies
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stream = connection.makefile("rw", encoding="utf-8")
        settings = json.loads(stream.readline())
        log = os.open(settings.pop("log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        print(json.dumps({"pid": os.getpid()}), file=stream, flush=True)
        serve(settings, stream, stream)
        os._exit(0)


def main() -> None:
    """Serve one engine over standard input and output, or many over a socket."""
    if sys.argv[1] == "--fork":
        for module in PRELOADED:
            importlib.import_module(module)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(sys.argv[2])
        listener.listen()
        fork_for_each(listener)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints goes to standard error
    serve(json.loads(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
