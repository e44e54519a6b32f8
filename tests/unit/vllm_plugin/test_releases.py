"""`scripts/check-releases` passes on the installed vLLM, and notices when something is gone."""

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import vllm

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "check-releases"
PLACE = Path(vllm.__file__).parents[1]
BASE = "vllm/v1/kv_offload/base.py"
EVENTS = "vllm/distributed/kv_events.py"
OFF = "vllm/distributed/kv_transfer/kv_connector/v1/offloading"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("check_releases", str(SCRIPT))
    spec = importlib.util.spec_from_loader("check_releases", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def problems(script: ModuleType, path: str = "", old: str = "", new: str = "") -> list[str]:
    """What is missing from the installed release when one of its files reads otherwise."""

    class Doctored(script.Tree):
        def _text(self, name: str) -> str | None:
            text = super()._text(name)
            if name != path or text is None:
                return text
            assert old in text
            return text.replace(old, new)

    return script.Check(Doctored(PLACE)).run()


def test_the_installed_release_has_all_we_need(script: ModuleType) -> None:
    assert problems(script) == []


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        (BASE, "class TransferResult", "class Outcome", "imports TransferResult"),
        (BASE, "    def touch(self, keys", "    def touch(self, why, keys", "no parameter why"),
        (
            BASE,
            "    def get_stats(self)",
            "    @abstractmethod\n    def fly(self): ...\n    def get_stats(self)",
            "lacks the abstract method fly",
        ),
        (BASE, "    evicted_keys:", "    dropped_keys:", "PrepareStoreOutput has no parameter"),
        (
            BASE,
            "    medium: Medium",
            "    medium: Medium\n    x: int",
            "OffloadingEvent also needs",
        ),
        (BASE, 'CPU = "', 'HOST = "', "Medium has no CPU"),
        (EVENTS, "def _service_replay", "def _answer_replay", "has no _service_replay"),
        (
            EVENTS,
            "    ownership: str",
            "    owned_by: str",
            "BlockStored has no parameter ownership",
        ),
        (f"{OFF}/common.py", "store_jobs", "saves", "has no store_jobs"),
        (f"{OFF}/scheduler.py", "tokens_per_hash", "hash_tokens", "has no tokens_per_hash"),
        (f"{OFF}/scheduler.py", "self._jobs", "self._work", "has no _jobs"),
        (f"{OFF}/metrics.py", "def set_gauge", "def put_gauge", "set_gauge: not there"),
        ("vllm/v1/request.py", "skip_reading_prefix_cache", "skip", "skip_reading_prefix_cache"),
    ],
)
def test_a_change_is_noticed(script: ModuleType, path: str, old: str, new: str, said: str) -> None:
    found = problems(script, path, old, new)
    assert any(said in problem for problem in found), found
