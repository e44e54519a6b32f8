"""What follows when weights change, with vLLM's core played by a fake; and what tells weights apart."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvstrata.chunks.namespace import Namespace
from kvstrata.vllm_plugin.turns import Held, Turns
from kvstrata.vllm_plugin.weight_changes import WeightChanges, checkpoint_of, watch
from kvstrata.vllm_plugin.weights_digest import tensor_digest, weights_digest


class FakeCache:
    """Keeps what it was told, and turns as a connector does."""

    def __init__(self) -> None:
        self.first = self.namespace = Namespace("tiny", {"weights": "at the start"})
        self.turns = Turns(self.first)
        self.resets = 0
        self.withheld = False
        self.changes = WeightChanges(self)

    def turn(self, held: Held | None) -> None:
        self.turns.want(held)

    def withhold(self, withheld: bool) -> None:
        self.withheld = withheld

    def reset(self) -> None:
        if not self.turns.wanted:
            self.changes.was_reset()
        self.namespace = self.turns.next()
        self.resets += 1


def make_core() -> Any:
    """A core of a class of its own, watched, over weights that are a text."""

    class Core:
        def __init__(self) -> None:
            self.weights = "A"
            self.busy = False
            self.readable = True
            self.asked = 0
            self.cache = FakeCache()
            self.scheduler = self
            self.model_executor = SimpleNamespace(is_sleeping=False, collective_rpc=self._workers)

        def _workers(self, method: Any) -> list[str]:
            assert method is weights_digest
            assert not self.model_executor.is_sleeping, "there is nothing to read"
            self.asked += 1
            if not self.readable:
                raise RuntimeError("no")
            return [f"digest of {self.weights}"]

        def collective_rpc(
            self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None
        ) -> Any:
            if callable(method):
                return method(self)
            if method == "reload_weights":
                self.weights = "B"
            return None

        def reset_prefix_cache(self, reset_running_requests: bool, reset_connector: bool) -> bool:
            assert reset_running_requests and reset_connector
            if self.busy:
                raise RuntimeError("requests wait for their loads")
            self.cache.reset()
            return True

        def _reset_caches(self) -> None:
            self.cache.reset()

        def resume_scheduler(self) -> None: ...

        def add_lora(self, lora_request: Any) -> bool:
            return True

    watch(Core, lambda core: iter([core.cache.changes]))
    watch(Core, lambda core: iter([]))  # once is enough
    return Core()


def put(weights: str) -> Any:
    """A method that changes weights."""

    def change(core: Any) -> None:
        core.weights = weights

    return change


@pytest.fixture
def core() -> Any:
    return make_core()


def test_what_is_known_to_be_harmless_is_not_even_asked_about(core) -> None:
    core.collective_rpc("check_health")
    assert (core.asked, core.cache.resets) == (0, 0)


def test_what_changes_nothing_costs_no_chunk(core) -> None:
    core.collective_rpc(lambda _: None)
    core.collective_rpc("somebody's own")
    assert core.cache.resets == 0 and core.cache.namespace == core.cache.first


def test_changed_weights_have_their_own_namespace_and_the_old_ones_theirs(core) -> None:
    core.collective_rpc(put("B"))
    changed = core.cache.namespace
    assert changed.fingerprint != core.cache.first.fingerprint and core.cache.resets == 1
    core.collective_rpc(put("A"))
    assert core.cache.namespace == core.cache.first
    core.collective_rpc(put("B"))
    assert core.cache.namespace == changed
    replica = make_core()
    replica.collective_rpc(put("B"))
    assert replica.cache.namespace == changed


def test_a_call_that_fails_may_have_changed_weights_too(core) -> None:
    def fails(core: Any) -> None:
        core.weights = "half"
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        core.collective_rpc(fails)
    assert core.cache.resets == 1 and core.cache.namespace != core.cache.first


def test_nothing_is_stored_in_the_middle_of_an_update(core) -> None:
    core.collective_rpc("start_weight_update")
    core.weights = "half"
    core.collective_rpc("update_weights")
    assert core.cache.withheld and core.cache.resets == 0
    core.weights = "B"
    core.collective_rpc("finish_weight_update")
    assert not core.cache.withheld and core.cache.resets == 1
    changed = core.cache.namespace
    other = make_core()
    other.collective_rpc(put("B"))
    assert other.cache.namespace == changed


def test_weights_that_cannot_be_read_are_shared_with_nobody(core) -> None:
    core.readable = False
    core.collective_rpc(put("B"))
    first = core.cache.namespace
    replica = make_core()
    replica.readable = False
    replica.collective_rpc(put("B"))
    assert len({first.fingerprint, replica.cache.namespace.fingerprint}) == 2


@pytest.mark.parametrize("after", ["A", "B"])
def test_sleep_and_what_is_there_when_it_wakes(core, after: str) -> None:
    core._reset_caches()  # as `EngineCore.sleep` does, before the weights go
    core.model_executor.is_sleeping = True
    assert core.cache.namespace != core.cache.first
    core.collective_rpc("reload_weights")  # partly awake
    assert core.cache.withheld
    core.weights = after
    core.model_executor.is_sleeping = False
    core.resume_scheduler()
    assert not core.cache.withheld
    assert (core.cache.namespace == core.cache.first) == (after == "A")
    asked = core.asked
    core.resume_scheduler()
    assert core.asked == asked, "nothing is unknown any more"


def test_a_cache_that_cannot_be_emptied_is_left_alone_until_it_can(core) -> None:
    core.busy = True
    core.collective_rpc(put("B"))
    core.cache.changes.tend()
    assert core.cache.withheld and core.cache.resets == 0
    core.busy = False
    core.cache.changes.tend()
    core.cache.changes.tend()
    assert not core.cache.withheld and core.cache.resets == 1
    assert core.cache.namespace.facts["weights"] == "in memory digest of B"


def test_a_named_checkpoint_has_its_own_namespace(core, tmp_path: Path) -> None:
    place = tmp_path / "other"
    place.mkdir()
    (place / "model.safetensors").write_bytes(bytes(64))
    core.collective_rpc("reload_weights", kwargs={"weights_path": str(place)})
    namespace = core.cache.namespace
    assert namespace.directory_name.startswith("other-")
    core.collective_rpc(put("C"))
    core.collective_rpc(put("B"))
    assert core.cache.namespace == namespace, "the same weights, however they came"


def test_an_adapter_of_the_same_name_and_other_content(core, tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(bytes(64))
    request = SimpleNamespace(lora_name="one", lora_path=str(tmp_path))
    core.add_lora(request)
    core.add_lora(request)
    assert core.cache.resets == 0
    file.write_bytes(b"\1" * 64)
    core.add_lora(request)
    changed = core.cache.namespace
    assert core.cache.resets == 1 and changed != core.cache.first
    core.collective_rpc(put("B"))
    core.collective_rpc(put("A"))
    assert core.cache.namespace == changed, "the adapter is still another"


def test_an_engine_core_that_is_not_known_is_left_as_it_is(caplog) -> None:
    class Unknown:
        collective_rpc = None

    watch(Unknown, lambda core: iter([]))
    assert Unknown.collective_rpc is None


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "expected"),
    [
        ("reload_weights", (), {"weights_path": "/a"}, "/a"),
        ("reload_weights", (None, "/a"), None, "/a"),
        ("reload_weights", (), None, None),
        ("reload_weights", (), {"weights_iterator": [1], "weights_path": "/a"}, None),
        ("reload_weights", (), {"weights_path": "/a", "is_checkpoint_format": False}, None),
        ("finish_weight_update", (), {"weights_path": "/a"}, None),
        (put("B"), (), {"weights_path": "/a"}, None),
    ],
)
def test_which_checkpoint_a_call_names(method, args, kwargs, expected) -> None:
    assert checkpoint_of(method, args, kwargs) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("shape", [(), (1,), (7, 33), (3, 5, 2), (0, 4)])
def test_a_digest_sees_every_element_and_its_place(dtype, shape) -> None:
    tensor = (torch.arange(torch.Size(shape).numel()) % 2).reshape(shape).to(dtype)
    digest = tensor_digest(tensor)
    assert tensor_digest(tensor.clone()) == digest
    for index in range(tensor.numel()):
        other = tensor.clone()
        flat = other.view(-1)
        flat[index] = 1 - flat[index].to(torch.float32)
        assert tensor_digest(other) != digest
    if len(shape) == 2 and tensor.numel():
        apart = tensor.t().contiguous().t()  # the same values, laid out otherwise
        assert not apart.is_contiguous() and tensor_digest(apart) == digest
        assert tensor_digest(tensor.roll(1, 0)) != digest


def test_a_digest_does_not_depend_on_where_pieces_end_and_sees_all_of_them(monkeypatch) -> None:
    monkeypatch.setattr("kvstrata.vllm_plugin.weights_digest.PIECE_BYTES", 64)
    tensor = torch.randn(50, 9)
    digest = tensor_digest(tensor)
    for row in range(50):
        other = tensor.clone()
        other[row, 8] += 1
        assert tensor_digest(other) != digest
    assert tensor_digest(tensor.flip(0)) != digest


def worker_of(model: torch.nn.Module) -> Any:
    return SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model))


def test_a_weight_that_only_its_kernel_knows_is_read_out_exactly() -> None:
    class Packed(torch.nn.Module):
        def __init__(self, hidden: torch.Tensor) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
            self.input_size_per_partition = hidden.shape[1]
            self.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(x, hidden)

    weight = torch.randn(40, 300)
    digest = weights_digest(worker_of(Packed(weight)))
    assert weights_digest(worker_of(Packed(weight.clone()))) == digest
    weight[39, 299] = torch.nextafter(weight[39, 299], torch.tensor(9.0))
    assert weights_digest(worker_of(Packed(weight))) != digest


def test_a_weight_that_is_nowhere_is_no_digest() -> None:
    model = torch.nn.Linear(4, 4)
    model.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(RuntimeError, match="weight is not where"):
        weights_digest(worker_of(model))
