"""Kinds of model that vLLM's CPU build cannot serve, so that nothing is known of them here.

Kept as configurations without weights: the zoo's tests start each, note the error for the support
table, and fail when one of them has begun to run, which is when it should get a recipe.
"""

import json
from pathlib import Path
from typing import Any

from lab.models import VOCAB_SIZE

_SHARED = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "tie_word_embeddings": False,
}
_ATTENTION = {
    **_SHARED,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40960,
}

REFUSED: dict[str, dict[str, Any]] = {
    "mamba1": {
        **_SHARED,
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "state_size": 16,
    },
    "jamba": {
        **_ATTENTION,
        "model_type": "jamba",
        "architectures": ["JambaForCausalLM"],
        "attn_layer_period": 4,
        "attn_layer_offset": 3,
        "expert_layer_period": 8,
        "expert_layer_offset": 7,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "use_mamba_kernels": False,
    },
    "bamba": {
        **_ATTENTION,
        "model_type": "bamba",
        "architectures": ["BambaForCausalLM"],
        "attn_layer_indices": [3],
        "mamba_n_heads": 8,
        "mamba_d_head": 64,
        "mamba_d_state": 64,
        "mamba_n_groups": 1,
    },
    "olmo-hybrid": {
        **_ATTENTION,
        "model_type": "olmo_hybrid",
        "architectures": ["OlmoHybridForCausalLM"],
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    "kimi-linear": {
        **_ATTENTION,
        "model_type": "kimi_linear",
        "architectures": ["KimiLinearForCausalLM"],
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "mla_use_nope": True,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 128,
        "first_k_dense_replace": 1,
        "linear_attn_config": {
            "kda_layers": [1, 2, 3],
            "full_attn_layers": [4],
            "num_heads": 4,
            "head_dim": 64,
            "short_conv_kernel_size": 4,
        },
    },
}
"""Configuration of each, by name."""

ENGINE = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "float32"}
"""Engine settings for a directory that has a configuration and nothing else."""


def write_configuration(name: str, directory: Path) -> Path:
    """Make `directory` a model of that kind without weights and tokenizer; returns it."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(REFUSED[name], indent=1))
    return directory
