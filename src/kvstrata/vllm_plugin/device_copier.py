"""Device ↔ arena copies on CUDA, ROCm and XPU: vLLM's own batched copy on its own stream.

Thin on purpose: the addresses come from `copies.py`, which is tested without a device.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

from kvstrata.vllm_plugin.copies import Copies, coalesce
from kvstrata.vllm_plugin.host_copier import Finished


def pin(address: int, nbytes: int) -> bool:
    """Make host memory known to the device, so that copies need no detour. Returns whether it is.

    Args:
        address: of its first byte.
        nbytes: length of the range.
    """
    try:
        from vllm.v1.kv_offload.cpu.host_register import host_register
    except ImportError:  # releases before 0.32 register inside their own region's class
        if not current_platform.is_cuda_alike():
            return False
        return int(torch.cuda.cudart().cudaHostRegister(address, nbytes, 0)) == 0
    return bool(host_register(address, nbytes))


@dataclass(slots=True)
class _Transfer:
    job: int
    nbytes: int
    began: Any
    ended: Any
    pointers: tuple[torch.Tensor, ...]


class DeviceCopier:
    """Copies on two side streams, one for each direction, so that loads do not queue behind stores.

    As in vLLM's `SingleDirectionOffloadingHandler`, a transfer waits for what the compute stream has
    queued before it: stores for the KV that they read, loads for the zeroing of the blocks they fill.
    """

    def __init__(self) -> None:
        self._streams = {True: current_platform.Stream(), False: current_platform.Stream()}
        self._transfers: dict[bool, deque[_Transfer]] = {True: deque(), False: deque()}
        self._pointer_dtype = torch.uint64 if current_platform.is_xpu() else torch.int64

    def submit(self, job: int, copies: Copies, *, to_device: bool) -> None:
        """Begin a transfer. The memory on both sides must stay until it has ended."""
        joined = coalesce(copies)
        source, target = (
            (joined.arena, joined.device) if to_device else (joined.device, joined.arena)
        )
        pointers = tuple(
            torch.from_numpy(values).to(dtype).pin_memory()
            for values, dtype in (
                (source, self._pointer_dtype),
                (target, self._pointer_dtype),
                (joined.nbytes, self._pointer_dtype),
            )
        )
        stream = self._streams[to_device]
        stream.wait_stream(current_platform.current_stream())
        began, ended = torch.Event(enable_timing=True), torch.Event(enable_timing=True)
        with current_platform.stream(stream):
            began.record(stream)
            if len(joined.nbytes):
                # Sources of a load are host memory that nothing writes meanwhile.
                ops.swap_blocks_batch(*pointers, is_src_access_order_any=to_device)
            ended.record(stream)
        transfer = _Transfer(job, copies.total_bytes, began, ended, pointers)
        self._transfers[to_device].append(transfer)

    def finished(self) -> list[Finished]:
        """Transfers that have ended since the last call."""
        done = []
        for transfers in self._transfers.values():
            while transfers and transfers[0].ended.query():
                transfer = transfers.popleft()
                seconds = transfer.began.elapsed_time(transfer.ended) / 1000
                done.append(Finished(transfer.job, transfer.nbytes, seconds))
        return done

    def wait(self, jobs: Iterable[int]) -> None:
        """Block until these transfers have ended; unknown ids are passed over."""
        wanted = set(jobs)
        for transfers in self._transfers.values():
            for transfer in transfers:
                if transfer.job in wanted:
                    transfer.ended.synchronize()

    def close(self) -> None:
        """Finish everything."""
        for transfers in self._transfers.values():
            for transfer in transfers:
                transfer.ended.synchronize()
            transfers.clear()
