"""A model's configuration, from its recipe: the entries that its family wants and the names it uses."""

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig

from lab.recipes import Recipe

Settings = dict[str, Any]


def configuration(recipe: Recipe, shared: Settings) -> Any:
    """The configuration of the model that `recipe` describes.

    Args:
        recipe: of the model.
        shared: entries that every family has, by their usual names. A family that has not such an
            entry leaves it out or gives it another value.
    """
    model_type, architecture, settings = FAMILIES[recipe.family]
    entries = {**shared, **settings(recipe), **recipe.details}
    entries = {name: value for name, value in entries.items() if value is not None}
    config: Any = AutoConfig.for_model(model_type, **entries)
    config.architectures = [architecture]
    return config


def _llama(_recipe: Recipe) -> Settings:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}


def _mistral(recipe: Recipe) -> Settings:
    return {"sliding_window": recipe.window}


def _cohere2(recipe: Recipe) -> Settings:
    # vLLM ties the output projection to the embedding here and in Zamba2, whatever the
    # configuration says; see `weights.py` for how a token is kept from repeating itself.
    return {
        "sliding_window": recipe.window,
        "layer_types": recipe.layer_types,
        "tie_word_embeddings": True,
        "logit_scale": 1.0,
    }


def _two_rotary_bases(full: Settings) -> Settings:
    return {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_theta": 1000000.0, **full},
    }


def _gemma3(recipe: Recipe) -> Settings:
    return {
        "layer_types": recipe.layer_types,
        "sliding_window": recipe.window,
        "query_pre_attn_scalar": recipe.head_size,
        "rope_parameters": _two_rotary_bases({"rope_type": "default"}),
    }


def _gemma4(recipe: Recipe) -> Settings:
    return {
        "layer_types": recipe.layer_types,
        "sliding_window": recipe.window,
        "hidden_size_per_layer_input": 0,
        "rope_parameters": _two_rotary_bases(
            {"rope_type": "proportional", "partial_rotary_factor": 0.25}
        ),
    }


def _gpt_oss(recipe: Recipe) -> Settings:
    original = 4096
    return {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": recipe.max_position / original,
            "original_max_position_embeddings": original,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
        "layer_types": recipe.layer_types,
        "sliding_window": recipe.window,
        "num_local_experts": recipe.experts,
        "num_experts_per_tok": recipe.experts_per_token,
    }


def _llama4(recipe: Recipe) -> Settings:
    # Normalised queries and keys have no weight here, so attention could not be made peaked.
    return {
        "attention_chunk_size": recipe.window,
        "no_rope_layer_interval": recipe.full_every,
        "intermediate_size_mlp": recipe.intermediate,
        "interleave_moe_layer_step": 0,
        "moe_layers": [],
        "use_qk_norm": False,
    }


def _deepseek(recipe: Recipe) -> Settings:
    return {
        "head_dim": None,
        "num_key_value_heads": recipe.heads,
        "q_lora_rank": None,
        "qk_nope_head_dim": recipe.head_size,
        "v_head_dim": recipe.head_size,
        "first_k_dense_replace": recipe.layers,
    }


def _linear_layer_types(recipe: Recipe) -> list[str]:
    return [
        "linear_attention" if kind == "sliding_attention" else kind for kind in recipe.layer_types
    ]


def _gated_delta(recipe: Recipe) -> Settings:
    return {
        "layer_types": _linear_layer_types(recipe),
        "linear_num_key_heads": recipe.heads // 2,
        "linear_num_value_heads": recipe.heads,
        "linear_key_head_dim": recipe.head_size,
        "linear_value_head_dim": recipe.head_size,
    }


def _qwen3_next(recipe: Recipe) -> Settings:
    # vLLM refuses this family without a mixture, so the first layer has one.
    return {
        **_gated_delta(recipe),
        "mlp_only_layers": list(range(1, recipe.layers)),
        "num_experts": recipe.experts,
        "num_experts_per_tok": recipe.experts_per_token,
        "moe_intermediate_size": recipe.intermediate // 4,
        "shared_expert_intermediate_size": recipe.intermediate // 4,
    }


def _mamba2(recipe: Recipe) -> Settings:
    return {
        **dict.fromkeys(("intermediate_size", "num_attention_heads", "num_key_value_heads")),
        "max_position_embeddings": recipe.max_position,
        "num_heads": STATE_HEADS,
        "head_dim": STATE_HEAD_SIZE,
        "state_size": STATE_SIZE,
        "n_groups": 1,
    }


def _granite_hybrid(recipe: Recipe) -> Settings:
    return {
        "layer_types": _linear_layer_types(recipe),
        "head_dim": None,
        "num_local_experts": 0,
        "shared_intermediate_size": recipe.intermediate,
        "attention_multiplier": recipe.head_size**-0.5,
        "position_embedding_type": "nope",
        **_state("mamba_"),
    }


def _falcon_h1(recipe: Recipe) -> Settings:
    return {
        "mamba_d_ssm": STATE_HEADS * STATE_HEAD_SIZE,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
        **_state("mamba_"),
    }


def _nemotron_h(recipe: Recipe) -> Settings:
    return {
        "num_hidden_layers": None,
        "mamba_num_heads": STATE_HEADS,
        "mamba_head_dim": STATE_HEAD_SIZE,
        "ssm_state_size": STATE_SIZE,
        "n_groups": 1,
    }


def _zamba2(recipe: Recipe) -> Settings:
    return {
        "num_key_value_heads": recipe.heads,
        "head_dim": None,
        "n_mamba_heads": STATE_HEADS,
        "mamba_d_state": STATE_SIZE,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "tie_word_embeddings": True,
        "adapter_rank": 32,
    }


def _state(prefix: str) -> Settings:
    return {
        prefix + "n_heads": STATE_HEADS,
        prefix + "d_head": STATE_HEAD_SIZE,
        prefix + "d_state": STATE_SIZE,
        prefix + "n_groups": 1,
    }


STATE_HEADS, STATE_HEAD_SIZE, STATE_SIZE = 8, 64, 64
"""Of a Mamba2 layer: 128 KiB of float32 a sequence, beside 7.5 KiB of the convolution's."""

FAMILIES: dict[str, tuple[str, str, Callable[[Recipe], Settings]]] = {
    "llama": ("llama", "LlamaForCausalLM", _llama),
    "mistral": ("mistral", "MistralForCausalLM", _mistral),
    "cohere2": ("cohere2", "Cohere2ForCausalLM", _cohere2),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM", _gemma3),
    "gemma4": ("gemma4_text", "Gemma4ForCausalLM", _gemma4),
    "gpt_oss": ("gpt_oss", "GptOssForCausalLM", _gpt_oss),
    "llama4": ("llama4_text", "Llama4ForCausalLM", _llama4),
    "deepseek": ("deepseek_v2", "DeepseekV2ForCausalLM", _deepseek),
    "qwen3_next": ("qwen3_next", "Qwen3NextForCausalLM", _qwen3_next),
    "qwen3_5": ("qwen3_5_text", "Qwen3_5ForCausalLM", _gated_delta),
    "mamba2": ("mamba2", "Mamba2ForCausalLM", _mamba2),
    "granite_hybrid": ("granitemoehybrid", "GraniteMoeHybridForCausalLM", _granite_hybrid),
    "falcon_h1": ("falcon_h1", "FalconH1ForCausalLM", _falcon_h1),
    "nemotron_h": ("nemotron_h", "NemotronHForCausalLM", _nemotron_h),
    "zamba2": ("zamba2", "Zamba2ForCausalLM", _zamba2),
}
"""Of each family: its name in configuration files, the architecture's, and its own entries."""
