"""Serving the text half of a model whose vLLM module also wants to see pictures.

vLLM's module for Qwen3.5 imports its picture processing, which needs torchvision. The pinned engine
goes without (see requirements/engine-cpu.txt), and text needs none of it.
"""

import sys
from importlib import import_module
from types import ModuleType

FUNCTIONAL = "torchvision.transforms.v2"


def register_qwen3_5() -> None:
    """Make Qwen3.5 known to vLLM's registry in this process, with or without torchvision."""
    from transformers.utils.import_utils import is_torchvision_available
    from vllm import ModelRegistry

    # The answer is remembered: nothing takes what is put in place below for the real package.
    if not is_torchvision_available():
        parts = FUNCTIONAL.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            sys.modules.setdefault(name, ModuleType(name))
        vars(sys.modules[FUNCTIONAL])["functional"] = ModuleType("functional")
    module = import_module("vllm.model_executor.models.qwen3_5")
    # By class and not by name: vLLM looks at named ones in a process that knows nothing of this.
    ModelRegistry.register_model("Qwen3_5ForCausalLM", module.Qwen3_5ForCausalLM)
