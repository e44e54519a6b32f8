"""Turn a recipe into a model directory: configuration, random weights, byte-level tokenizer.

How the weights are drawn, and why. A freshly initialised network mostly repeats a function of its
last token: attention is a near-uniform mean that washes out single tokens, and a tied output
projection finds the last token's embedding in the residual stream. A cache that returned the wrong
bytes would then go unnoticed. So here

- each projection preserves variance, and each sublayer adds about as much to the residual stream as
  the embedding did: what attention read is most of what the output sees;
- a recurrent state forgets slowly in some heads, so that a prompt's beginning is still in it;
- queries and keys are scaled up (`Recipe.query_key_gain`), so that each position attends to a few
  tokens of its own choice, near or far, and still does so in a prompt of 32K tokens;
- few full-attention layers among many windowed ones write louder, so that tokens beyond the window
  count;
- the output projection is not tied to the embedding, it even speaks against the last token, so that
  greedy answers wander instead of repeating themselves;
- only printable ASCII bytes can be generated: no run ends early, and no token is half a character
  that a server would hold back.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from lab.families.configuration import configuration
from lab.families.weights import against_repetition, draw
from lab.models import VOCAB_SIZE

if TYPE_CHECKING:
    from lab.recipes import Recipe

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
        "dtype": recipe.engine["dtype"],
    }
    return configuration(recipe, shared)


def _weights(recipe: "Recipe", config: Any) -> dict[str, torch.Tensor]:
    # On the meta device a model is only its names and shapes.
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    weights = {name: draw(recipe, name, shape.shape) for name, shape in shapes.items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    else:
        embedding = next(weights[name] for name in weights if "embed" in name)
        weights["lm_head.weight"] = against_repetition(weights["lm_head.weight"], embedding)
    if recipe.family == "qwen3_next":
        weights = dict(_each_expert_apart(weights))
    return weights


def _each_expert_apart(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """With the names that published checkpoints of the family use, where each expert stands alone."""
    for name, weight in weights.items():
        module, separator, part = name.rpartition(".experts.")
        if not separator:
            yield name, weight
            continue
        for number, expert in enumerate(weight):
            halves = expert.chunk(2) if part == "gate_up_proj" else [expert]
            parts = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
            for half, called in zip(halves, parts, strict=True):
                yield f"{module}.experts.{number}.{called}.weight", half.clone()
