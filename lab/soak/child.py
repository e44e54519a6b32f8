"""A process that forks engines which do what they are told: one JSON command a line in, one answer out.

`python -m lab.soak.child SOCKET` forks an engine for each connection. The first line it is sent is a JSON
object: `model` (a name of `lab.models`), `extra` (our options, or null for an engine without any) and
`engine` (arguments of `vllm.LLM`); it answers with its process id, and once more when it is ready. SIGUSR1
prints the stacks of all its threads to the log. The other side is `lab.soak.engines`.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

# vLLM reads these when it is imported.
os.environ.update(
    OMP_NUM_THREADS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
)

from vllm import LLM, SamplingParams
from vllm.v1.metrics.reader import Counter, Gauge

from lab.models import RECIPES, ensure

PREFIX = "vllm:kvstrata_"
PRELOADED = (
    "kvstrata.vllm_plugin.connector",
    "kvstrata.vllm_plugin.spec",
    "kvstrata.vllm_plugin.publisher",
    "kvstrata.vllm_plugin.cpu_build",
    "vllm.model_executor.models.gemma3",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.worker.cpu_worker",
)


class Child:
    """The engine and its commands; each method without underscore is one.

    Args:
        settings: see above.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        extra = settings["extra"]
        connector = {
            "kv_connector": "KVStrataConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        }
        self._llm = LLM(
            model=str(ensure(settings["model"])),
            enforce_eager=True,
            distributed_executor_backend="uni",
            disable_log_stats=False,
            kv_transfer_config=connector if extra else None,
            **{**RECIPES[settings["model"]].engine, **settings["engine"]},
        )

    def ask(
        self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Greedy answers to prompts (token ids) that are served together: `tokens` (ids), `cached` (prompt
        tokens that were not computed) and `seconds` (for all of them)."""
        sampling = [SamplingParams(temperature=0.0, max_tokens=n) for n in max_tokens]
        begun = time.monotonic()
        answers = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling, use_tqdm=False
        )
        seconds = time.monotonic() - begun
        return [
            {
                "tokens": list(answer.outputs[0].token_ids),
                "cached": answer.num_cached_tokens,
                "seconds": seconds,
            }
            for answer in answers
        ]

    def reset_device(self) -> bool:
        """Empty the device's prefix cache, and nothing else."""
        return bool(self._llm.reset_prefix_cache())

    def idle(self, patience: float) -> bool:
        """Step until nothing is being stored any more; whether that came within `patience` seconds."""
        scheduler = self._llm.llm_engine.engine_core.engine_core.scheduler
        deadline = time.monotonic() + patience
        while scheduler.has_requests():
            if time.monotonic() > deadline:
                return False
            self._llm.llm_engine.step()
            time.sleep(0.001)
        return True

    def metrics(self) -> dict[str, float]:
        """Our metrics, as vLLM publishes them: `name{label=value,...}`, without the common prefix."""
        self._llm.llm_engine.step()
        found: dict[str, float] = {}
        for metric in self._llm.get_metrics():
            if isinstance(metric, Counter | Gauge) and metric.name.startswith(PREFIX):
                labels = metric.labels.items()
                kept = sorted(f"{k}={v}" for k, v in labels if k not in ("engine", "model_name"))
                found[f"{metric.name.removeprefix(PREFIX)}{{{','.join(kept)}}}"] = metric.value
        return found

    def stop(self) -> None:
        """Shut the engine down as a server does on SIGTERM."""
        self._llm.llm_engine.engine_core.shutdown()


def serve(stream: TextIO) -> None:
    """Be one engine until the stream of commands ends."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    settings = json.loads(stream.readline())
    print(json.dumps({"result": os.getpid()}), file=stream, flush=True)
    child = Child(settings)
    print(json.dumps({"result": "ready"}), file=stream, flush=True)
    for line in stream:
        command = json.loads(line)
        result = getattr(child, command["do"])(**command["with"])
        print(json.dumps({"result": result}), file=stream, flush=True)


def main() -> None:
    """Fork an engine for each connection: importing vLLM, the slow part of a start, is done once."""
    end_with_parent()
    for module in PRELOADED:
        importlib.import_module(module)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: no zombies
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        end_with_parent()
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        serve(connection.makefile("rw", encoding="utf-8"))
        os._exit(0)


def end_with_parent() -> None:
    """The kernel ends this process with the thread that started it, however that happens."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main()
