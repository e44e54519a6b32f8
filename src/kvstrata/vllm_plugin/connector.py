"""`KVStrataConnector`: what a user names in `--kv-transfer-config`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.logger import init_logger

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.tenants import tenant_name
from kvstrata.errors import ConfigError
from kvstrata.tiering.admitting import Keep, read_keep
from kvstrata.tiering.planner import RequestShape
from kvstrata.tiers.arena import Arena
from kvstrata.vllm_plugin.announcer import Announcer
from kvstrata.vllm_plugin.diagnosis import log_diagnosis
from kvstrata.vllm_plugin.facts import engine_facts
from kvstrata.vllm_plugin.groups import group_geometry, group_keys
from kvstrata.vllm_plugin.identity import engine_namespace, layout_facts
from kvstrata.vllm_plugin.manager import KVStrataManager, Tenant
from kvstrata.vllm_plugin.publisher import introduce
from kvstrata.vllm_plugin.retention import (
    keep_answer_end,
    mend_state_steps,
    mend_windows,
    single_block_reason,
    state_block,
)
from kvstrata.vllm_plugin.seals import tenants_key
from kvstrata.vllm_plugin.spec import SPEC_NAME, KVStrataSpec
from kvstrata.vllm_plugin.stats import tell_endpoints
from kvstrata.vllm_plugin.turns import Held
from kvstrata.vllm_plugin.weight_changes import WeightChanges, watch

logger = init_logger(__name__)

ATTACH_SECONDS = 120.0
"""How long the scheduler waits for its workers to attach the arena."""


def select_spec(vllm_config: Any) -> None:
    """Make vLLM's spec factory choose our spec."""
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    extra.setdefault("spec_name", SPEC_NAME)
    extra.setdefault("spec_module_path", KVStrataSpec.__module__)
    # The next turn of a conversation begins with this turn's answer.
    extra.setdefault("offload_prompt_only", False)


def _choose_chunks(vllm_config: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Turn chunks of several blocks off where a model would never be served from them."""
    kv_cache_config = kwargs.get("kv_cache_config", args[0] if args else None)
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    given = [key for key in ("blocks_per_chunk", "block_size") if key in extra]
    if kv_cache_config is None or not given or extra.get("blocks_per_chunk") == 1:
        return
    reason = single_block_reason(kv_cache_config)
    if reason is not None:
        logger.warning(
            "kvstrata: '%s' is not used: %s, so that nothing would ever be found in chunks of several "
            "blocks; chunks are one block",
            given[0],
            reason,
        )
        for key in given:
            del extra[key]
        extra["blocks_per_chunk"] = 1


class KVStrataConnector(OffloadingConnector):
    """vLLM's offloading connector over kvstrata's tiers.

    Raises:
        ConfigError: an option or the engine's set-up is wrong; the message names the remedy.
    """

    def __init__(self, vllm_config: Any, role: Any, *args: Any, **kwargs: Any) -> None:
        select_spec(vllm_config)
        if getattr(vllm_config.parallel_config, "nnodes_within_dp", 1) > 1:
            raise ConfigError(
                "kvstrata needs all workers of an engine on one machine, since they share its host arena; "
                "this engine spreads over several nodes"
            )
        _choose_chunks(vllm_config, args, kwargs)
        super().__init__(vllm_config, role, *args, **kwargs)
        self._shapes: dict[str, RequestShape] = {}
        self._idle = False
        self._geometries: tuple[GroupGeometry, ...] = ()
        self._step = 1
        self._state_block = state_block(self._kv_cache_config)
        if self.connector_scheduler is not None:
            manager = self.connector_scheduler.manager
            assert isinstance(manager, KVStrataManager)
            self._manager = manager
            self._name_key = tenants_key(manager.options)
            self._start(vllm_config)
            self.changes = WeightChanges(self)
            watch(engine_core(), _changes_in)

    def _start(self, vllm_config: Any) -> None:
        """Lay out the arena from what the workers declared, and start serving."""
        config = self.scheduler.config = mend_windows(self.scheduler.config)
        options = self._manager.options
        transfer = vllm_config.kv_transfer_config
        world_size = vllm_config.parallel_config.world_size
        arena = Arena.attach(options.shm_dir, transfer.engine_id, options.memory or 0, world_size)
        declared = arena.declarations(ATTACH_SECONDS)
        arena.seal()
        self._geometries = tuple(
            group_geometry(group, config.blocks_per_chunk, [d["block_bytes"][i] for d in declared])
            for i, group in enumerate(config.kv_group_configs)
        )
        groups = self._kv_cache_config.kv_cache_groups
        self._step = math.lcm(*(geometry.tokens_per_chunk for geometry in self._geometries))
        namespace = engine_namespace(
            vllm_config,
            self._geometries,
            {g.group_idx: groups[g.group_idx].layer_names for g in config.kv_group_configs},
            [{"layout": d["layout"]} for d in declared],
            options.label,
            options.seal,
        )
        self._manager.start(arena, self._geometries, namespace, self._announcer(vllm_config))
        self._manager.publish(
            log_diagnosis(
                vllm_config,
                self._geometries,
                [len(groups[g.group].layer_names) for g in self._geometries],
                options,
                arena_bytes=arena.data_bytes,
                prompts_only=config.offload_prompt_only,
            )
        )

    def _announcer(self, vllm_config: Any) -> Announcer | None:
        """Of this engine, if its events are published; known to the publisher that vLLM makes next."""
        events = vllm_config.kv_events_config
        if events is None or not events.enable_kv_cache_events or events.publisher != "zmq":
            return None
        announcer = Announcer(
            engine_facts(vllm_config, self._kv_cache_config, self._geometries),
            look_through=self._manager.options.announce,
        )
        introduce(announcer)
        return announcer

    # Weights that change; see `kvstrata.vllm_plugin.weight_changes`.

    def turn(self, held: Held | None) -> None:
        """What the next reset turns to; None for a namespace that nobody shares."""
        self._manager.turns.want(held)

    def withhold(self, withheld: bool) -> None:
        """Whether nothing is to be stored or loaded."""
        self._manager.withheld = withheld

    def reset_cache(self) -> bool | None:
        """See vLLM; empties every tier."""
        if not self._manager.turns.wanted:
            self.changes.was_reset()
        return super().reset_cache()

    def on_new_request(self, request: Any) -> None:
        """See vLLM; called between two steps."""
        self.changes.tend()
        super().on_new_request(request)
        context = self.scheduler._req_status[request.request_id].req_context
        asked = (request.kv_transfer_params or {}).get("store")
        if asked is not None:
            context.set_state(read_keep(asked))
        if request.cache_salt:
            context.set_state(Tenant(tenant_name(request.cache_salt, self._name_key)))

    def has_pending_push_work(self) -> bool:
        """See vLLM; called between two steps, when there are no requests."""
        self.changes.tend()
        return super().has_pending_push_work()

    # Worker half.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """See vLLM; notes the memory layout for the namespace before the worker is made."""
        assert self.connector_worker is not None
        spec = self.connector_worker.spec
        assert isinstance(spec, KVStrataSpec)
        layers = self._vllm_config.compilation_config.static_forward_context
        spec.layout = layout_facts(kv_caches, self._kv_cache_config.num_blocks, layers)
        super().register_kv_caches(kv_caches)

    # Scheduler half.

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """See vLLM; answers None until the request's chunks are in memory or given up."""
        mend_state_steps(self._vllm_config, self._state_block)
        if self._manager.withheld:
            return 0, False
        if request.skip_reading_prefix_cache:
            return super().get_num_new_matched_tokens(request, num_computed_tokens)
        shape = self._shape(request, num_computed_tokens)
        if not self._manager.poll_load(request.request_id, shape):
            if self._idle:
                self._idle = False  # once a step
                self._manager.wait()
            return None, False
        junction = self._manager.junction(request.request_id)
        if junction > request.shared_prefix_boundary:
            request.shared_prefix_boundary = junction
        tokens, is_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if tokens and not self._manager.covers(request.request_id, num_computed_tokens + tokens):
            return 0, False
        return tokens, is_async

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """See vLLM; the request's load is used or not needed any more."""
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        shape = self._shapes.pop(request.request_id, None)
        if shape is not None:
            self._manager.cache.used(
                request.request_id,
                shape,
                shape.computed + num_external_tokens,
                [request.shared_prefix_boundary],
                self._keep(request.request_id),
            )
            self._manager.scheduled(
                request.request_id, shape.computed, num_external_tokens, shape.tokens
            )

    def _keep(self, request_id: str) -> Keep:
        context = self.scheduler._req_status[request_id].req_context
        return context.get_state(Keep) or Keep.EVERYWHERE

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        """See vLLM; stores whose blocks and chunks disagree are withheld."""
        for request_id in scheduler_output.finished_req_ids or ():
            if keep_answer_end(self.scheduler, self._geometries, request_id, self._step):
                self._manager.count_junction("answer")
            self._answered(request_id)
        meta = super().build_connector_meta(scheduler_output)
        for job_id, job in meta.store_jobs.items():
            self._manager.check_store(
                job.src_spec.group_sizes,
                job.src_spec.block_indices,
                job.dst_spec,
                self.scheduler._jobs[job_id].keys,
            )
        self._idle = scheduler_output.total_num_scheduled_tokens == 0
        for request_id in scheduler_output.finished_req_ids or ():
            self._shapes.pop(request_id, None)
        return meta

    def _answered(self, request_id: str) -> None:
        """Tell eviction of a finished request's answer, where answers are stored."""
        status = self.scheduler._req_status.get(request_id)
        if status is not None and not self.scheduler.config.offload_prompt_only:
            request = status.req
            self._manager.cache.answered(
                request_id, self._shape(request, 0), request.num_prompt_tokens
            )

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """See vLLM; runs in the API server's process."""
        select_spec(vllm_config)
        metrics = super().build_prom_metrics(vllm_config, *args, **kwargs)
        engines = kwargs.get("per_engine_labelvalues", args[-1] if args else {})
        tell_endpoints(metrics, getattr(vllm_config, "kv_events_config", None), engines)
        return metrics

    def _shape(self, request: Any, computed: int) -> RequestShape:
        known = self._shapes.get(request.request_id)
        if known is not None and (known.computed, known.tokens) == (computed, request.num_tokens):
            return known
        hash_tokens = self.scheduler.config.tokens_per_hash
        params = request.kv_transfer_params or {}
        cap = params.get("max_load_tokens")
        shape = RequestShape(
            groups=[group_keys(request, geometry, hash_tokens) for geometry in self._geometries],
            tokens=request.num_tokens,
            computed=computed,
            max_load_tokens=cap if type(cap) is int and cap >= 0 else None,
        )
        self._shapes[request.request_id] = shape
        return shape


def engine_core() -> type[Any]:
    """vLLM's class; imported late, since it imports the connectors."""
    from vllm.v1.engine.core import EngineCore

    return EngineCore


def _changes_in(core: Any) -> Iterator[WeightChanges]:
    """Of an engine core's connectors that are ours."""
    connector = getattr(getattr(core, "scheduler", None), "connector", None)
    for one in (connector, *getattr(connector, "_connectors", ())):
        if isinstance(one, KVStrataConnector):
            yield one.changes
