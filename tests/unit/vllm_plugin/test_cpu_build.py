"""The CPU build's Mamba2 layers are changed on the CPU build, and on no other platform."""

import subprocess
import sys

import pytest
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2

from kvstrata.vllm_plugin.cpu_build import mend

ELSEWHERE = """
import sys
import vllm.platforms

class Cuda:
    def is_cpu(self):
        return False

vllm.platforms.current_platform = Cuda()
from kvstrata.vllm_plugin.cpu_build import mend
assert not mend()
assert "vllm.model_executor.layers.mamba.mamba_mixer2" not in sys.modules
"""


def own(*_arguments: object) -> None:
    """Stands for the method that promises checkpoints."""


def test_the_cpu_build_takes_the_promise_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MambaMixer2, "get_kv_cache_spec", own)
    assert mend()
    assert MambaMixer2.get_kv_cache_spec is MambaBase.get_kv_cache_spec
    assert not mend()


def test_another_platform_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        def is_cpu(self) -> bool:
            return False

    monkeypatch.setattr(MambaMixer2, "get_kv_cache_spec", own)
    monkeypatch.setattr("vllm.platforms.current_platform", Cuda())
    assert not mend()
    assert MambaMixer2.get_kv_cache_spec is own


def test_another_platform_does_not_even_import_the_layers() -> None:
    subprocess.run([sys.executable, "-c", ELSEWHERE], check=True, timeout=120)


def test_the_plug_in_mends_when_it_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvstrata.vllm_plugin import register

    monkeypatch.setattr(MambaMixer2, "get_kv_cache_spec", own)
    register()
    assert MambaMixer2.get_kv_cache_spec is MambaBase.get_kv_cache_spec
