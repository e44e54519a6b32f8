"""Turn a recipe into a model directory: configuration, random weights, byte-level tokenizer.

How the weights are drawn, and why. A freshly initialised network mostly repeats a function of its
last token: attention is a near-uniform mean that washes out single tokens, and a tied output
projection finds the last token's embedding in the residual stream. A cache that returned the wrong
bytes would then go unnoticed. So here

- each projection preserves variance, and each sublayer adds about as much to the residual stream as
  the embedding did: what attention read is most of what the output sees;
- queries and keys are scaled up (`Recipe.query_key_gain`), so that each position attends to a few
  tokens of its own choice, near or far, and still does so in a prompt of 32K tokens;
- few full-attention layers among many windowed ones write louder, so that tokens beyond the window
  count;
- the output projection is not tied to the embedding, it even speaks against the last token, so that
  greedy answers wander instead of repeating themselves;
- only printable ASCII bytes can be generated: no run ends early, and no token is half a character
  that a server would hold back.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GptOssConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from lab.models import PRINTABLE, VOCAB_SIZE

if TYPE_CHECKING:
    from lab.models import Recipe

BOS, EOS, PAD, SYSTEM, USER, ASSISTANT, END = (
    "<|bos|>",
    "<|eos|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
SPECIALS = [BOS, EOS, PAD, SYSTEM, USER, ASSISTANT, END]
BOS_ID, EOS_ID, PAD_ID = 256, 257, 258

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

OUTPUT_GAIN = 3.0
"""Standard deviation of the logits: the best of 95 stands out well above float32 noise."""

SELF_PENALTY = 30.0
"""Divided by sqrt(hidden): how much of a token's own embedding its output row has against it."""

GATED_GAIN = 1.7
"""Restores the variance that silu(gate) * up (and its gelu twin) takes away."""

MEAN_GAIN = 2.0
"""Restores roughly what averaging values under peaked attention takes away."""


def write_checkpoint(recipe: "Recipe", directory: Path) -> None:
    """Write a complete model into the existing, empty `directory`.

    Files: config.json, generation_config.json, model.safetensors (float32), the tokenizer's.
    Equal recipes give equal bytes.
    """
    config = _config(recipe)
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False
    ).save_pretrained(directory)
    byte_tokenizer(recipe.max_position).save_pretrained(directory)
    save_file(_weights(recipe, config), directory / "model.safetensors", metadata={"format": "pt"})


def byte_tokenizer(max_tokens: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte (the id is the byte) and the special tokens after those.

    Any text round-trips; nothing is added to a text unless a chat template is applied.
    """
    # The byte-level alphabet names each byte by a printable character; bytes that are printable
    # keep their own, the others follow from 256 on in order.
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    vocabulary = {chr(byte): byte for byte in plain}
    vocabulary |= {chr(256 + index): byte for index, byte in enumerate(rest)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, END],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_tokens,
    )


def _config(recipe: "Recipe") -> Any:
    shared = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.key_value_heads,
        "head_dim": recipe.head_size,
        "max_position_embeddings": recipe.max_position,
        "tie_word_embeddings": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "dtype": "float32",
    }
    if recipe.family == "llama":
        rope = {"rope_type": "default", "rope_theta": 500000.0}
        config: Any = LlamaConfig(**shared, rope_parameters=rope)
        config.architectures = ["LlamaForCausalLM"]
    elif recipe.family == "gemma3":
        rotary = {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        }
        config = Gemma3TextConfig(
            **shared,
            layer_types=recipe.layer_types,
            sliding_window=recipe.window,
            query_pre_attn_scalar=recipe.head_size,
            rope_parameters=rotary,
        )
        config.architectures = ["Gemma3ForCausalLM"]
    else:
        original = 4096
        yarn = {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": recipe.max_position / original,
            "original_max_position_embeddings": original,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        }
        config = GptOssConfig(
            **shared,
            rope_parameters=yarn,
            layer_types=recipe.layer_types,
            sliding_window=recipe.window,
            num_local_experts=recipe.experts,
            num_experts_per_tok=recipe.experts_per_token,
        )
        config.architectures = ["GptOssForCausalLM"]
    return config


def _weights(recipe: "Recipe", config: Any) -> dict[str, torch.Tensor]:
    # On the meta device a model is only its names and shapes.
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    weights = {name: _draw(recipe, name, shape.shape) for name, shape in shapes.items()}
    # Each token speaks against itself, or many a random network settles on one token for ever.
    embedding = torch.nn.functional.normalize(weights["model.embed_tokens.weight"], dim=1)
    repetition = embedding * (SELF_PENALTY / recipe.hidden**0.5)
    weights["lm_head.weight"][PRINTABLE.start : PRINTABLE.stop] -= repetition[
        PRINTABLE.start : PRINTABLE.stop
    ]
    return weights


def _draw(recipe: "Recipe", name: str, shape: torch.Size) -> torch.Tensor:
    """One parameter of the model, by the rules in the module's docstring."""
    seed = hashlib.sha256(f"{recipe.seed}/{name}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(seed[:8], "big") >> 1)
    # gpt-oss keeps its experts as (expert, in, out), everything else is (out, in).
    fan_in = shape[1] if len(shape) > 1 else 1
    unit = torch.randn(shape, generator=random, dtype=torch.float32)
    scaled = unit / fan_in**0.5
    part = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if part == "embed_tokens":
        # Gemma multiplies embeddings by sqrt(hidden), the others take them as they are.
        return scaled if recipe.family == "gemma3" else unit
    if part in ("q_norm", "k_norm"):
        # Gemma's norm multiplies by 1 + weight.
        return torch.full(shape, recipe.query_key_gain**0.5 - 1.0)
    if part == "post_attention_layernorm" and recipe.family == "gemma3":
        layer_type = recipe.layer_types[int(name.split("layers.")[1].split(".")[0])]
        gain = recipe.full_every**0.5 if layer_type == "full_attention" else 1.0
        return torch.full(shape, gain - 1.0)
    if part.endswith("norm"):
        return torch.zeros(shape) if recipe.family == "gemma3" else torch.ones(shape)
    if name.endswith("bias") or part == "sinks":
        return unit * 0.05
    if part in ("q_proj", "k_proj"):
        return scaled * recipe.query_key_gain**0.5
    if part == "lm_head":
        printable = torch.zeros(shape)
        printable[PRINTABLE.start : PRINTABLE.stop] = 1.0
        # Rows of one length, or the few longest would win most of the time.
        return torch.nn.functional.normalize(unit, dim=1) * printable * OUTPUT_GAIN
    if part == "o_proj":
        return scaled * MEAN_GAIN
    return scaled * GATED_GAIN if part == "down_proj" else scaled
