"""The worker half: copies between the device's KV cache and the arena."""

from collections.abc import Sequence
from typing import Protocol

import torch
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from kvstrata.tiers.arena import Arena
from kvstrata.vllm_plugin.copies import Copies, GroupSlots, LayerPages, build_copies
from kvstrata.vllm_plugin.host_copier import Finished, HostCopier

logger = init_logger(__name__)

PIN_PATIENCE = 120.0
"""Seconds without progress after which the arena's memory is no longer waited for."""


class ArenaSlots(LoadStoreSpec):
    """Arena side of one transfer, in vLLM's metadata.

    Attributes:
        groups: one for each offloaded group, in vLLM's order.
    """

    def __init__(self, groups: Sequence[GroupSlots]) -> None:
        self.groups = list(groups)


class Copier(Protocol):
    """What moves bytes; see `HostCopier` and `DeviceCopier`."""

    def submit(self, job: int, copies: Copies, *, to_device: bool) -> None: ...

    def finished(self) -> list[Finished]: ...

    def wait(self, jobs: set[int]) -> None: ...

    def close(self) -> None: ...


def layer_pages(kv_caches: CanonicalKVCaches) -> list[list[LayerPages]]:
    """Where each group's layers lie on the device, in payload order."""
    return [
        [_pages(kv_caches.tensors[ref.tensor_idx].tensor, ref.page_size_bytes) for ref in refs]
        for refs in kv_caches.group_data_refs
    ]


def _pages(tensor: torch.Tensor, page_bytes: int) -> LayerPages:
    stride = tensor.stride(0) * tensor.element_size()
    return LayerPages(tensor.data_ptr(), stride, page_bytes, tensor.shape[0])


class ArenaWorker(OffloadingWorker):
    """Moves blocks between the device and the arena; never fails a transfer.

    Args:
        kv_caches: the device side.
        arena: attached by this process.
        rank: of this worker.
    """

    def __init__(self, kv_caches: CanonicalKVCaches, arena: Arena, rank: int) -> None:
        self._kv_caches = kv_caches  # keeps the memory that the addresses point to
        self._layers = layer_pages(kv_caches)
        self._arena = arena
        self._rank = rank
        self._copier = _make_copier(kv_caches.tensors[0].tensor.device, arena)

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        """Device → arena; asynchronous."""
        return self._submit(job_id, src_spec, dst_spec, to_device=False)

    def submit_load(
        self,
        job_id: int,
        src_spec: LoadStoreSpec,
        dst_spec: GPULoadStoreSpec,
        expedited: bool = False,
    ) -> bool:
        """Arena → device; asynchronous. Loads outrank stores anyway, so `expedited` changes nothing."""
        return self._submit(job_id, dst_spec, src_spec, to_device=True)

    def get_finished(self) -> list[TransferResult]:
        """Transfers that have ended since the last call."""
        return [
            TransferResult(done.job, True, done.nbytes, done.seconds)
            for done in self._copier.finished()
        ]

    def wait(self, job_ids: set[int]) -> None:
        """Block until these transfers have ended."""
        self._copier.wait(job_ids)

    def shutdown(self) -> None:
        """Finish all transfers and detach from the arena."""
        self._copier.close()
        self._arena.close()

    def _submit(
        self, job: int, device: GPULoadStoreSpec, arena: LoadStoreSpec, *, to_device: bool
    ) -> bool:
        assert isinstance(arena, ArenaSlots)
        copies = build_copies(
            device.block_ids,
            device.group_sizes,
            device.block_indices,
            arena.groups,
            self._layers,
            self._arena.address,
            self._rank,
        )
        self._copier.submit(job, copies, to_device=to_device)
        return True


def _make_copier(device: torch.device, arena: Arena) -> Copier:
    if device.type == "cpu":
        return HostCopier()
    from kvstrata.vllm_plugin.device_copier import DeviceCopier, pin

    arena.await_memory(PIN_PATIENCE)  # pinning touches every page
    if not pin(arena.address, arena.data_bytes):
        logger.warning(
            "the host arena could not be pinned; copies to and from %s will be slower", device
        )
    return DeviceCopier()
