"""A connector for `lab.bench.batch_load`: kvstrata's own, with a stopwatch and three switches.

The engine's counters sum what overlaps, so they cannot say how long the load of a batch took from end to
end. This connector appends one JSON object a line to the file that the environment variable
`KVSTRATA_LAB_PROBE` names. Times are `time.monotonic`, which all processes of a machine share.

The switches are in `kv_transfer_params` of a request:

- `FORGET` empties the memory tier before the request is looked up, so that one server can be measured with
  its chunks in memory, and with them in files alone;
- `HOLD` keeps loads from being reported until that many have ended. Otherwise the requests that are loaded
  first compute on the very cores that copy for the others, which no accelerator does.

And no attention is computed for more than one token a request: what prompts' keys and values are does not
matter here, only that the engine stores and loads them by its usual ways, and on two cores attention to
8 192 tokens takes a minute a batch. Works where both halves of the connector live in one process (executor
"uni").
"""

import json
import os
import time
from typing import Any

import torch
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.kv_offload.base import GPULoadStoreSpec, LoadStoreSpec, TransferResult

from kvstrata.vllm_plugin import KVStrataConnector
from kvstrata.vllm_plugin.worker import ArenaWorker
from lab.bench.batch_shape import FORGET, HOLD, PROBE


class Notes:
    """Appends events to the probe's file, each line in one write: two halves of an engine share it."""

    def __init__(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(os.environ[PROBE], flags, 0o644)

    def add(self, event: str, **facts: Any) -> None:
        """Append one event with the present time."""
        line = json.dumps({"event": event, "at": time.monotonic(), **facts}) + "\n"
        os.write(self._fd, line.encode())


class Gate:
    """How many loads must have ended before any is reported; the scheduler's half sets it."""

    def __init__(self) -> None:
        self.loads = 0


GATE = Gate()


class StopwatchWorker:
    """Stands before the worker that copies, and notes when each load into the device ended.

    Args:
        worker: does the work.
    """

    def __init__(self, worker: ArenaWorker) -> None:
        self._worker = worker
        self._notes = Notes()
        self._began: dict[int, float] = {}
        self._held: list[TransferResult] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def submit_load(
        self,
        job_id: int,
        src_spec: LoadStoreSpec,
        dst_spec: GPULoadStoreSpec,
        expedited: bool = False,
    ) -> bool:
        """See `ArenaWorker`."""
        self._began[job_id] = time.monotonic()
        return self._worker.submit_load(job_id, src_spec, dst_spec, expedited)

    def get_finished(self) -> list[TransferResult]:
        """See `ArenaWorker`; a load ended when its copy did, which may be long before this call."""
        finished = self._worker.get_finished()
        stores = []
        for result in finished:
            began = self._began.pop(result.job_id, None)
            if began is None:
                stores.append(result)
                continue
            ended = began + (result.transfer_time or 0.0)
            self._notes.add("loaded", began=began, ended=ended, nbytes=result.transfer_size)
            self._held.append(result)
        if len(self._held) < GATE.loads:
            return stores
        GATE.loads = 0
        loads, self._held = self._held, []
        return stores + loads


class ProbedConnector(KVStrataConnector):
    """See the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._notes = Notes()
        self._seen: set[str] = set()

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """See vLLM."""
        super().register_kv_caches(kv_caches)
        half: Any = self.connector_worker
        half.worker = StopwatchWorker(half.worker)
        skip_long_attention()

    def on_new_request(self, request: Any) -> None:
        """See vLLM."""
        super().on_new_request(request)
        self._notes.add("queued")

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """See vLLM; the first call for a request is when the scheduler takes it up."""
        if request.request_id not in self._seen:
            self._seen.add(request.request_id)
            switches = request.kv_transfer_params or {}
            if switches.get(FORGET):
                self._manager.cache.memory.clear()
            GATE.loads = switches.get(HOLD, 0)
            self._notes.add("asked")
        return super().get_num_new_matched_tokens(request, num_computed_tokens)


def skip_long_attention() -> None:
    """Let attention answer zeros where a request computes more than one token; its keys are kept."""
    compute = CPUAttentionBackendImpl.forward

    def forward(
        self: Any,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        *rest: Any,
        **named: Any,
    ) -> torch.Tensor:
        if attn_metadata is not None and attn_metadata.max_query_len > 1:
            return output.zero_()
        return compute(
            self, layer, query, key, value, kv_cache, attn_metadata, output, *rest, **named
        )

    CPUAttentionBackendImpl.forward = forward
