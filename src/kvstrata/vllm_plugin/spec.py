"""vLLM's offloading spec: makes the scheduler's manager and the worker's copier from one set of options."""

import os
from typing import Any

import psutil
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingSpec, OffloadingWorker

from kvstrata.errors import ConfigError
from kvstrata.options import Options
from kvstrata.sizes import format_size
from kvstrata.tiers.arena import Arena
from kvstrata.vllm_plugin.manager import KVStrataManager
from kvstrata.vllm_plugin.stats import definitions
from kvstrata.vllm_plugin.worker import ArenaWorker

logger = init_logger(__name__)

SPEC_NAME = "KVStrataSpec"
MIN_DEFAULT_MEMORY = 1 << 30


class KVStrataSpec(OffloadingSpec):
    """Made once in the scheduler process and once in each worker.

    Attributes:
        options: parsed from `kv_connector_extra_config`.
        layout: the worker's memory layout, set before `get_worker`; see `identity.layout_facts`.

    Raises:
        ConfigError: an option is wrong, or the engine's set-up is not supported.
    """

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        self.options = Options.parse(self.extra_config)
        self.layout: dict[str, Any] = {}

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        """Our metrics, for vLLM's Prometheus endpoint."""
        return definitions()

    def get_manager(self) -> KVStrataManager:
        """The scheduler's half; the connector starts it when it knows the groups."""
        return KVStrataManager(self.options)

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """This worker's half: attach the arena and say what a block holds here."""
        parallel = self.config.parallel
        device_bytes = sum(
            cache.tensor.untyped_storage().nbytes() for cache in kv_caches.tensors[:1]
        )
        arena = Arena.attach(
            self.options.shm_dir,
            self.config.engine_id,
            self.options.memory or default_memory(device_bytes, parallel.world_size, self.options),
            parallel.world_size,
        )
        arena.declare(
            parallel.rank,
            {
                "block_bytes": [
                    sum(ref.page_size_bytes for ref in refs) for refs in kv_caches.group_data_refs
                ],
                "layout": self.layout,
            },
        )
        return ArenaWorker(kv_caches, arena, parallel.rank)


def default_memory(device_bytes: int, world_size: int, options: Options) -> int:
    """Bytes of the arena when the option `memory` is not given: as large as the device's cache.

    At least 1 GiB; never more than a quarter of the machine's available memory or half of what the memory
    filesystem has free.

    Raises:
        ConfigError: that leaves less than 64 MiB.
    """
    status = os.statvfs(options.shm_dir)
    size = min(
        max(device_bytes * world_size, MIN_DEFAULT_MEMORY),
        psutil.virtual_memory().available // 4,
        status.f_bavail * status.f_frsize // 2,
    )
    if size < 64 << 20:
        raise ConfigError(
            f"only {format_size(size)} of host memory can be had for the arena by default: free memory, "
            f"enlarge {options.shm_dir}, or give the option 'memory' (for example \"256MiB\")"
        )
    size = size // (2 << 20) * (2 << 20)
    logger.info(
        "kvstrata: option 'memory' is not given; using %s of host memory", format_size(size)
    )
    return size
