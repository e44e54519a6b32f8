"""Weights that change under a running engine: noticed at the engine's core, whoever asked for it.

vLLM empties its caches and the connector's when it is paused or put to sleep, but not when weights change:
`collective_rpc("reload_weights")`, the weight transfer of `finish_weight_update`, a worker extension's own
method. All of them pass `EngineCore.collective_rpc`, in the process of the scheduler, between two steps; so
does LoRA's `EngineCore.add_lora`. These methods are watched here.

What follows a change:

- The device's prefix cache and every tier of ours are emptied. Requests that run are preempted and computed
  again, with the new weights, behind the tokens that they gave already.
- The engine turns to the namespace of what it holds now. If a checkpoint was named, it is the namespace that
  an engine started with it has; else one that is named by a digest of the weights in memory, which is the
  same in all engines that were given the same weights.
- As long as it is not known what the engine holds, in the middle of an update or asleep, nothing is stored
  and nothing is loaded.
"""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from vllm.logger import init_logger

from kvstrata.vllm_plugin.identity import model_directory
from kvstrata.vllm_plugin.turns import Held
from kvstrata.vllm_plugin.weights import weights_fingerprint
from kvstrata.vllm_plugin.weights_digest import weights_digest

logger = init_logger(__name__)

HARMLESS = frozenset(
    {
        "add_lora",
        "check_health",
        "checkpoint_prepare",
        "checkpoint_restore",
        "compute_weight_checksums",
        "determine_available_memory",
        "execute_dummy_batch",
        "get_cache_block_size_bytes",
        "get_kv_cache_spec",
        "get_model_inspection",
        "get_supported_kv_cache_layouts",
        "init_weight_transfer_engine",
        "is_sleeping",
        "list_loras",
        "measure_encoder_output_widths",
        "pin_lora",
        "profile",
        "remove_lora",
        "reset_encoder_cache",
        "reset_mm_cache",
        "save_sharded_state",
        "save_tensorized_model",
        "set_kv_cache_layout",
        "shutdown_weight_transfer_engine",
        "synchronize_device",
        "update_config",
        "update_max_model_len",
    }
)
"""Methods of vLLM's workers that leave the base weights as they are."""
BEGINNING = frozenset(
    {"discard", "sleep", "start_draft_weight_update", "start_weight_update", "update_weights"}
)
"""After these the weights are incomplete, or not in memory at all, until something else is called."""
SLOW_SECONDS = 1.0
"""A digest that takes longer is logged."""


class Cache(Protocol):
    """What of our connector is told; see `KVStrataConnector`."""

    def turn(self, held: Held | None) -> None:
        """What the next reset turns to; None for a namespace that nobody shares."""
        ...

    def withhold(self, withheld: bool) -> None:
        """Whether nothing is to be stored or loaded."""
        ...


class WeightChanges:
    """What one engine's weights are known to be.

    Args:
        cache: told of what follows.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._weights: Held | None = Held({})
        self._digest: str | None = None
        self._known: dict[str, Held] = {}
        self._adapters: dict[tuple[str, str], str] = {}
        self._replaced: dict[str, str] = {}
        self._stale: Any = None

    @property
    def held(self) -> Held | None:
        """What the engine holds; None where nobody knows."""
        if self._weights is None or not self._replaced:
            return self._weights
        facts, model = self._weights
        return Held({**facts, "adapters": self._replaced}, model)

    def remember(self, core: Any) -> None:
        """Before weights may change: what is there belongs to the namespace in use."""
        if self._digest is not None or self._weights is None or core.model_executor.is_sleeping:
            return
        self._digest = _ask(core)
        if self._digest is not None:
            self._known.setdefault(self._digest, self._weights)

    def begun(self) -> None:
        """The weights are incomplete from now on."""
        self._weights = self._digest = self._stale = None
        self._cache.withhold(True)

    def was_reset(self) -> None:
        """vLLM emptied our cache itself, as before a change: nobody knows until the weights are looked at."""
        self._weights = None

    def changed(self, core: Any, checkpoint: str | None = None) -> None:
        """The weights may be others now.

        Args:
            core: vLLM's `EngineCore`.
            checkpoint: directory that they all came from, where that is known.
        """
        if core.model_executor.is_sleeping:  # looked at when it is awake
            self.begun()
            return
        before, self._digest = self._digest, _ask(core)
        if self._digest is not None and self._digest == before and self._weights is not None:
            return
        self._weights = self._identify(checkpoint)
        self._empty(core)

    def resumed(self, core: Any) -> None:
        """vLLM goes on after a pause."""
        if self._weights is None and not core.model_executor.is_sleeping:
            self.changed(core)

    def adapter(self, core: Any, name: str, path: str) -> None:
        """A LoRA adapter was loaded, perhaps in the place of one that had the same name and path."""
        found = _checkpoint_fingerprint(path) or "unknown"
        before = self._adapters.setdefault((name, path), found)
        if found == before:
            return
        self._adapters[name, path] = found
        self._replaced = {**self._replaced, f"{name} {path}": found}
        if self._weights is not None:
            self._empty(core)

    def tend(self) -> None:
        """Between two steps: empty what could not be emptied at once."""
        if self._stale is not None:
            self._empty(self._stale)

    def _identify(self, checkpoint: str | None) -> Held | None:
        fingerprint = _checkpoint_fingerprint(checkpoint) if checkpoint else None
        if checkpoint and fingerprint is not None:
            facts = {"weights": fingerprint, "model": None, "revision": None, "seed": None}
            named = Held(facts, model_directory(checkpoint))
            if self._digest is not None:
                self._known[self._digest] = named
            return named
        if self._digest is None:
            return None
        facts = {"weights": f"in memory {self._digest}", "model": None, "revision": None}
        return self._known.setdefault(self._digest, Held(facts))

    def _empty(self, core: Any) -> None:
        """Empty the device's cache and ours; while that cannot be done, nothing is stored or loaded."""
        weights, why = self._weights, "blocks are in use"
        self._cache.turn(self.held)
        try:
            emptied = core.scheduler.reset_prefix_cache(
                reset_running_requests=True, reset_connector=True
            )
        except RuntimeError as error:  # requests wait for their loads, and hold blocks
            emptied, why = False, str(error)
        self._weights = weights  # whatever the reset made of it
        if not emptied and self._stale is None:
            logger.warning(
                "kvstrata: weights changed, and the device's prefix cache cannot be emptied yet (%s); until "
                "it can, nothing is stored or loaded",
                why,
            )
        self._stale = None if emptied else core
        self._cache.withhold(not emptied)


def checkpoint_of(method: Any, args: Any, kwargs: Any) -> str | None:
    """The directory that a call of `reload_weights` names; None for any other call."""
    if method != "reload_weights":
        return None
    given = dict(zip(("weights_iterator", "weights_path"), args or (), strict=False))
    given.update(kwargs or {})
    place = given.get("weights_path")
    if given.get("weights_iterator") is not None or not given.get("is_checkpoint_format", True):
        return None
    return str(place) if place else None


def watch(engine_core: type[Any], changes_of: Callable[[Any], Iterator[WeightChanges]]) -> None:
    """Wrap the methods of vLLM's engine core that can change weights. Repeatable.

    Args:
        engine_core: vLLM's class `EngineCore`.
        changes_of: for a core, those of its connectors that are ours.
    """
    if getattr(engine_core, "_kvstrata_watched", False):
        return
    needed = ("collective_rpc", "resume_scheduler", "_reset_caches", "add_lora")
    missing = [name for name in needed if not hasattr(engine_core, name)]
    if missing:
        logger.warning(
            "kvstrata: this vLLM's engine core has no %s; weights that change in place are not noticed, so "
            "reset the caches after such a change (POST /reset_prefix_cache?reset_external=true)",
            ", ".join(missing),
        )
        return
    engine_core._kvstrata_watched = True
    _wrap_rpc(engine_core, changes_of)
    _around(engine_core, "_reset_caches", changes_of, before=lambda one, core: one.remember(core))
    _around(engine_core, "resume_scheduler", changes_of, after=lambda one, core: one.resumed(core))
    _wrap_adapters(engine_core, changes_of)


def _wrap_rpc(engine_core: type[Any], changes_of: Callable[[Any], Iterator[WeightChanges]]) -> None:
    original = engine_core.collective_rpc

    @functools.wraps(original)
    def collective_rpc(
        core: Any, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None
    ) -> Any:
        ours = [] if method in HARMLESS else list(changes_of(core))
        for one in ours:
            one.remember(core)
            if method in BEGINNING:
                one.begun()
        whole = False
        try:
            answer = original(core, method, timeout, args, kwargs)
            whole = True
            return answer
        finally:
            for one in ours:
                if method not in BEGINNING:
                    one.changed(core, checkpoint_of(method, args, kwargs) if whole else None)

    engine_core.collective_rpc = collective_rpc


def _wrap_adapters(
    engine_core: type[Any], changes_of: Callable[[Any], Iterator[WeightChanges]]
) -> None:
    original = engine_core.add_lora

    @functools.wraps(original)
    def add_lora(core: Any, lora_request: Any) -> Any:
        try:
            return original(core, lora_request)
        finally:
            for one in changes_of(core):
                one.adapter(core, lora_request.lora_name, lora_request.lora_path)

    engine_core.add_lora = add_lora


def _around(
    engine_core: type[Any],
    name: str,
    changes_of: Callable[[Any], Iterator[WeightChanges]],
    *,
    before: Callable[[WeightChanges, Any], None] | None = None,
    after: Callable[[WeightChanges, Any], None] | None = None,
) -> None:
    original = getattr(engine_core, name)

    @functools.wraps(original)
    def wrapped(core: Any, *args: Any, **kwargs: Any) -> Any:
        ours = list(changes_of(core))
        for one in ours if before is not None else ():
            assert before is not None
            before(one, core)
        answer = original(core, *args, **kwargs)
        for one in ours if after is not None else ():
            assert after is not None
            after(one, core)
        return answer

    setattr(engine_core, name, wrapped)


def _ask(core: Any) -> str | None:
    """The digest of the weights of all workers, in rank order; None where they cannot be read."""
    begun = time.monotonic()
    try:
        digests = core.model_executor.collective_rpc(weights_digest)
    except Exception as error:  # boundary: whatever a worker says, the engine goes on
        logger.warning(
            "kvstrata: the weights in memory cannot be told from others (%s); after a change of weights this "
            "engine shares its chunks with no other",
            error,
            exc_info=True,
        )
        return None
    taken = time.monotonic() - begun
    if taken > SLOW_SECONDS:
        logger.info("kvstrata: reading all weights to tell them from others took %.1f s", taken)
    return "-".join(digests)


def _checkpoint_fingerprint(place: str) -> str | None:
    try:
        return weights_fingerprint(Path(place)) if Path(place).exists() else None
    except OSError:
        return None
