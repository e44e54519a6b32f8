"""A real vLLM server on this machine: started, awaited, stopped, and never left behind.

A server leads a process group of its own, so that stopping it reaches its engine core too, and the kernel
ends it when the thread that started it dies, however that happens.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.client import EngineClient
from lab.models import RECIPES, ensure, prompt_ids

START_SECONDS = 120.0
STOP_SECONDS = 30.0
TAIL_BYTES = 3000
IDLE_GAUGES = (
    "vllm:kvstrata_chunks{state=writing,tier=memory}",
    "vllm:kvstrata_queue_depth{queue=write}",
)
"""All are zero when everything stored so far has reached the files."""
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LIBC = ctypes.CDLL(None)  # loaded here: nothing may be loaded between fork and exec

SMALL_MACHINE = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_SERVER_DEV_MODE": "1",  # offers POST /reset_prefix_cache
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


class ServerError(Exception):
    """The server did not start, or did not do what it was asked; the message ends with its log."""


class EngineServer:
    """One server; use it as a context manager.

    Args:
        model: name of a tiny model (see `lab.models`).
        log: file for what the server prints.
        kv: our options (`kv_connector_extra_config`); None runs stock vLLM.
        hybrid: whether vLLM's hybrid KV cache manager is on.
        max_model_len: tokens.
        device_bytes: of the device's KV cache.
        threads: that compute; one leaves a core for other engines of a test.
        processes: run the engine core in a process of its own, as vLLM does by default; one process
            starts faster and needs less memory.
        arguments: further command line arguments.
        environment: further environment variables.
        patience: seconds that it may take to start; None for `START_SECONDS`.
    """

    def __init__(
        self,
        model: str,
        log: Path,
        *,
        kv: Mapping[str, Any] | None = None,
        hybrid: bool = True,
        max_model_len: int = 8192,
        device_bytes: int = 256 << 20,
        threads: int = 1,
        processes: bool = False,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        patience: float | None = None,
    ) -> None:
        self.model = model
        self.log = log
        self.port = free_port()
        self._patience = patience
        self._command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--model", str(ensure(model)), "--served-model-name", model),
            "--enforce-eager",
            *_flags(RECIPES[model].engine),
            *("--max-model-len", str(max_model_len), "--max-num-seqs", "8"),
            *("--kv-cache-memory-bytes", str(device_bytes)),
            *("--distributed-executor-backend", "uni"),
            # Without it vLLM kills its engine core, and with it the writes that wait.
            *("--shutdown-timeout", "20"),
            *("--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
            *(() if hybrid else ("--disable-hybrid-kv-cache-manager",)),
            *(() if kv is None else ("--kv-transfer-config", _transfer_config(kv))),
            *arguments,
        ]
        self._environment = {
            **os.environ,
            **SMALL_MACHINE,
            "OMP_NUM_THREADS": str(threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes)),
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.client = EngineClient(self.port, model)

    @property
    def pid(self) -> int:
        """Of the server's first process; the engine core may be its child.

        Raises:
            ServerError: it does not run.
        """
        if self._process is None:
            raise ServerError(f"{self.model} does not run")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it answers.

        The server lives no longer than the thread that calls this.

        Raises:
            ServerError: it died or took too long.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        patience = self._patience or START_SECONDS
        deadline = time.monotonic() + patience
        try:
            while not self.client.healthy():
                status = self._process.poll()
                if status is not None:
                    raise ServerError(f"the server ended with status {status}\n{self.tail()}")
                if time.monotonic() > deadline:
                    raise ServerError(f"no answer within {patience:g} s\n{self.tail()}")
                time.sleep(0.1)
        except BaseException:
            self.kill()
            raise

    def warm_up(self, tokens: int = 300) -> None:
        """One request of its own, so that first-time costs are paid."""
        self.client.complete(prompt_ids(tokens, seed=self.port), max_tokens=2)

    def wait_idle(self, seconds: float = 60.0) -> None:
        """Wait until everything stored so far has been written.

        vLLM publishes what connectors count only when its engine steps, so tiny requests keep it going.
        Only for a server with `kv`: a stock one publishes nothing of the kind.

        Raises:
            ServerError: not in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.client.complete(prompt_ids(8, seed=1), max_tokens=1)
            found = self.client.metrics()
            # A gauge that is missing has not been published yet: that is not idle.
            if all(found.get(name) == 0 for name in IDLE_GAUGES):
                return
            time.sleep(0.3)
        raise ServerError(f"still writing after {seconds:g} s\n{self.tail()}")

    def stop(self) -> None:
        """SIGTERM, which lets it finish its writes, and SIGKILL for what that does not end."""
        self.client.close()
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
                self._process.wait(STOP_SECONDS)
        self.kill()  # an engine core can outlive a server that died

    def kill(self) -> None:
        """SIGKILL, for it and all its processes."""
        process, self._process = self._process, None  # once ended, its number may be another's
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads its own group
        process.wait()

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-TAIL_BYTES:]


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel ends the child when the thread that started it dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """A recipe's engine settings on a command line."""
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def _transfer_config(kv: Mapping[str, Any]) -> str:
    return json.dumps(
        {
            "kv_connector": "KVStrataConnector",
            "kv_connector_module_path": "kvstrata.vllm_plugin",
            "kv_role": "kv_both",
            "kv_connector_extra_config": dict(kv),
        }
    )


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
