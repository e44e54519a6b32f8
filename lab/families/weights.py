"""How each parameter of a tiny model is drawn; `lab.checkpoint` says to what end."""

import hashlib
import math

import torch
from torch.nn.functional import normalize

from lab.models import PRINTABLE
from lab.recipes import Recipe

OUTPUT_GAIN = 3.0
"""Standard deviation of the logits: the best of 95 stands out well above float32 noise."""

SELF_PENALTY = 30.0
"""Divided by sqrt(hidden): how much of a token's own embedding its output row has against it."""

GATED_GAIN = 1.7
"""Restores the variance that silu(gate) * up (and its gelu twin) takes away."""

MEAN_GAIN = 2.0
"""Restores roughly what averaging values under peaked attention takes away."""

TIED_SCALE = 0.1
"""Of an embedding that is the output projection too: a token is then a small part of its own residual
stream, so it does not win for ever, while each sublayer's norm still sees it whole."""

DECAY = (0.001, 0.3)
"""Smallest and largest decay rate of a layer's state heads: some remember a thousand tokens, others
three. Drawn as networks usually are, all would have forgotten a prompt's beginning by its end."""

CENTRED = -0.5
"""Bias of a convolution whose outputs silu makes zero on average. Otherwise a state that forgets slowly
is mostly the sum of those averages, the same for all texts."""

TIED = ("cohere2", "zamba2")
"""Families whose output projection is the embedding."""

SCALED_EMBEDDING = ("gemma3", "gemma4")
"""Families that multiply embeddings by sqrt(hidden)."""

NORM_PLUS_ONE = ("gemma3", "qwen3_next", "qwen3_5")
"""Families whose norms multiply by 1 + weight."""


def draw(recipe: Recipe, name: str, shape: torch.Size) -> torch.Tensor:
    """The parameter `name` of the model, float32, of the given shape."""
    # What one module's copies share must be one value, whichever of them is loaded last.
    source = name.split("shared_transformer.")[-1]
    seed = hashlib.sha256(f"{recipe.seed}/{source}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(seed[:8], "big") >> 1)
    unit = torch.randn(shape, generator=random, dtype=torch.float32)
    part = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if part in ("embed_tokens", "embeddings"):
        return _embedding(recipe, unit)
    if part == "lm_head":
        return _output(unit)
    if part.endswith(("norm", "norm_f")) or part == "layer_scalar":
        return torch.full(shape, _norm(recipe, name, part, shape[-1]))
    if "mamba." in name or "mixer." in name or "linear_attn." in name:
        found = _state(part, name, unit)
        if found is not None:
            return found
    if name.endswith("bias") or part == "sinks":
        return unit * 0.05
    # gpt-oss keeps its experts as (expert, in, out), everything else is (out, in) or (expert, out, in).
    fan_in = 1 if len(shape) == 1 else shape[1 if recipe.family == "gpt_oss" else -1]
    return unit / fan_in**0.5 * _gain(recipe, name, part)


def against_repetition(output: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """The output projection, (vocabulary, hidden), with each token speaking against itself.

    Without it many a random network settles on one token for ever.
    """
    speaking = slice(PRINTABLE.start, PRINTABLE.stop)
    repetition = normalize(embedding, dim=1) * (SELF_PENALTY / embedding.shape[1] ** 0.5)
    output = output.clone()
    output[speaking] -= repetition[speaking]
    return output


def _embedding(recipe: Recipe, unit: torch.Tensor) -> torch.Tensor:
    if recipe.family in TIED:
        return _printable(unit) * normalize(unit, dim=1) * unit.shape[1] ** 0.5 * TIED_SCALE
    return unit / unit.shape[1] ** 0.5 if recipe.family in SCALED_EMBEDDING else unit


def _output(unit: torch.Tensor) -> torch.Tensor:
    # Rows of one length, or the few longest would win most of the time.
    return normalize(unit, dim=1) * _printable(unit) * OUTPUT_GAIN


def _printable(unit: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros_like(unit)
    mask[PRINTABLE.start : PRINTABLE.stop] = 1.0
    return mask


def _norm(recipe: Recipe, name: str, part: str, size: int) -> float:
    value = 1.0
    if part in ("q_norm", "k_norm"):
        value = recipe.query_key_gain**0.5
        if recipe.family == "gemma4":  # attention there does not divide by sqrt(head size)
            value /= size**0.25
    elif part == "post_attention_layernorm" and recipe.family in SCALED_EMBEDDING:
        layer_type = recipe.layer_types[int(name.split("layers.")[1].split(".")[0])]
        value = recipe.full_every**0.5 if layer_type == "full_attention" else 1.0
    elif recipe.family in TIED and name in ("model.norm.weight", "model.final_layernorm.weight"):
        value = OUTPUT_GAIN / (TIED_SCALE * size**0.5)
    plain = recipe.family not in NORM_PLUS_ONE or "linear_attn." in name
    return value if plain else value - 1.0


def _state(part: str, name: str, unit: torch.Tensor) -> torch.Tensor | None:
    """Parameters that only a layer with a recurrent state has; None for the others."""
    if part == "A_log":
        low, high = map(math.log, DECAY)
        return torch.linspace(low, high, len(unit))
    if part == "dt_bias":
        return unit * 0.1
    if part == "D":
        return torch.full_like(unit, 0.5)
    if name.endswith("conv1d.weight"):  # (channels, 1, taps)
        return unit / unit.shape[-1] ** 0.5
    return unit * 0.05 + CENTRED if name.endswith("conv1d.bias") else None


def _gain(recipe: Recipe, name: str, part: str) -> float:
    if part in ("q_proj", "k_proj"):
        # A family that normalises queries and keys takes its gain from the norms.
        if recipe.family in ("qwen3_next", "qwen3_5"):
            return 1.0
        gain = recipe.query_key_gain
        return gain if recipe.family == "deepseek" else math.sqrt(gain)
    if part == "o_proj":
        # An output gate halves what attention read.
        return MEAN_GAIN * (2.0 if recipe.family in ("qwen3_next", "qwen3_5") else 1.0)
    if part in ("down_proj", "output_linear"):
        return 1.0 if recipe.family == "nemotron_h" else GATED_GAIN
    if part == "out_proj":
        return GATED_GAIN
    return 0.3 if "adapter_list" in name else 1.0
