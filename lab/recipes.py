"""What each tiny model is made of, and what an engine must be told to serve it well."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal[
    "llama",
    "mistral",
    "cohere2",
    "gemma3",
    "gemma4",
    "gpt_oss",
    "llama4",
    "deepseek",
    "qwen3_next",
    "qwen3_5",
    "mamba2",
    "granite_hybrid",
    "falcon_h1",
    "nemotron_h",
    "zamba2",
]

FLOAT32 = {"dtype": "float32", "block_size": 128}
"""Engine settings of a model that needs nothing else: exact enough that answers are repeatable."""


GATED_DELTA = {"dtype": "bfloat16", "block_size": 256}
"""The CPU's kernels for gated delta states know no float32. A block is what makes a page of keys and
values as large as a state; a server whose engine runs in its own process has to be told."""

MAMBA2 = {"dtype": "float32"}
MAMBA2_HYBRID = {"dtype": "float32", "block_size": 384}
"""As above: a block of that many tokens is as large as a state."""


@dataclass(frozen=True)
class Recipe:
    """What one tiny model is made of.

    Sizes are in elements, `window` and `max_position` in tokens. `full_every` is the layer pattern:
    1 means that each layer has full attention, n > 1 that every n-th layer has it and the layers
    between see only the last `window` tokens. `query_key_gain` is the standard deviation that the
    attention logits of unrelated tokens have: e**(gain**2) is about the factor by which attention
    is more peaked than a plain mean. `experts` > 0 makes the MLP a mixture with `experts_per_token`
    active. `seed` is the only source of randomness. `details` are further entries of the model's
    configuration file, by the names of its family. `engine` are the arguments by which vLLM serves
    it; tests, demos and benchmarks take them from here.
    """

    family: Family
    purpose: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    full_every: int = 1
    window: int = 0
    max_position: int = 40960
    query_key_gain: float = 3.0
    experts: int = 0
    experts_per_token: int = 0
    seed: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=lambda: FLOAT32)

    @property
    def layer_types(self) -> list[str]:
        """Attention kind of each layer, by the names that model configurations use."""
        return [
            "full_attention" if (layer + 1) % self.full_every == 0 else "sliding_attention"
            for layer in range(self.layers)
        ]


SMALL: dict[str, Any] = {
    "layers": 4,
    "hidden": 256,
    "intermediate": 512,
    "heads": 4,
    "key_value_heads": 2,
    "head_size": 64,
}

# A block of one layer is half a megabyte: what a load costs a byte outweighs what it costs a chunk.
WIDE: dict[str, Any] = {
    "layers": 8,
    "hidden": 128,
    "intermediate": 128,
    "heads": 4,
    "key_value_heads": 4,
    "head_size": 128,
}

# The two for benchmarks have one key-value head and few query heads: where a CPU has no AVX-512,
# attention runs at some 20 GFLOP/s a core, and 32K tokens have to be recomputed in two minutes.
RECIPES: dict[str, Recipe] = {
    "llama": Recipe(
        family="llama",
        purpose="full attention only, one KV cache group: the plain case of the tests",
        layers=4,
        hidden=256,
        intermediate=512,
        heads=4,
        key_value_heads=2,
        head_size=64,
    ),
    "llama-bench": Recipe(
        family="llama",
        purpose="full attention for TTFT up to 32K tokens: 4 KiB of cache a token, few query heads",
        layers=8,
        hidden=512,
        intermediate=1536,
        heads=2,
        key_value_heads=1,
        head_size=64,
    ),
    "gemma3-1to1": Recipe(
        family="gemma3",
        purpose="window of 128 alternating with full attention: one windowed group, one full",
        layers=6,
        hidden=256,
        intermediate=512,
        heads=4,
        key_value_heads=2,
        head_size=64,
        full_every=2,
        window=128,
    ),
    "gemma3-5to1": Recipe(
        family="gemma3",
        purpose="five windowed layers (128) to one full: several windowed groups",
        layers=12,
        hidden=256,
        intermediate=512,
        heads=4,
        key_value_heads=2,
        head_size=64,
        full_every=6,
        window=128,
    ),
    "gemma3-w1024": Recipe(
        family="gemma3",
        purpose="a window of several blocks (1024), five to one, one layer a group",
        layers=6,
        hidden=256,
        intermediate=512,
        heads=4,
        key_value_heads=2,
        head_size=64,
        full_every=6,
        window=1024,
    ),
    "gemma3-bench": Recipe(
        family="gemma3",
        purpose="hybrid five to one, window 1024, for the demo and the benchmarks",
        layers=12,
        hidden=512,
        intermediate=1024,
        heads=4,
        key_value_heads=1,
        head_size=64,
        full_every=6,
        window=1024,
    ),
    "wide-half": Recipe(
        family="gemma3",
        purpose="wide cache, small weights (32 KiB a token): half the layers windows of 128",
        **WIDE,
        full_every=2,
        window=128,
    ),
    "wide-half-w1024": Recipe(
        family="gemma3",
        purpose="wide cache, small weights: half the layers windows of 1024",
        **WIDE,
        full_every=2,
        window=1024,
    ),
    "wide-three-quarters": Recipe(
        family="gemma3",
        purpose="wide cache, small weights: three quarters of the layers windows of 128",
        **WIDE,
        full_every=4,
        window=128,
    ),
    "gpt-oss": Recipe(
        family="gpt_oss",
        purpose="window of 128 alternating with full attention, sinks and a small mixture",
        layers=4,
        hidden=256,
        intermediate=256,
        heads=4,
        key_value_heads=2,
        head_size=64,
        full_every=2,
        window=128,
        experts=4,
        experts_per_token=2,
    ),
    "mistral": Recipe(
        family="mistral",
        purpose="windows of 512 in every layer and nothing else: one windowed group",
        window=512,
        **SMALL,
    ),
    "cohere2": Recipe(
        family="cohere2",
        purpose="windows that reach 512 tokens back (513 with the token itself) beside full attention",
        full_every=4,
        window=512,
        **SMALL,
    ),
    "gemma4": Recipe(
        family="gemma4",
        purpose="full attention with heads twice as wide: pages of equal size, 256 and 128 tokens",
        full_every=4,
        window=256,
        details={"global_head_dim": 128},
        **SMALL,
    ),
    "llama4": Recipe(
        family="llama4",
        purpose="attention within chunks of 512 tokens beside full attention",
        full_every=4,
        window=512,
        **SMALL,
    ),
    "deepseek-mla": Recipe(
        family="deepseek",
        purpose="latent attention: one compressed vector a token instead of keys and values",
        details={"kv_lora_rank": 512, "qk_rope_head_dim": 64},
        **SMALL,
    ),
    "qwen3-next": Recipe(
        family="qwen3_next",
        purpose="gated delta states beside full attention, one fused input projection",
        full_every=4,
        experts=4,
        experts_per_token=2,
        **SMALL,
        engine=GATED_DELTA,
    ),
    "qwen3.5": Recipe(
        family="qwen3_5",
        purpose="gated delta states beside full attention, separate input projections",
        full_every=4,
        **SMALL,
        engine=GATED_DELTA,
    ),
    "mamba2": Recipe(
        family="mamba2",
        purpose="Mamba2 states in every layer and nothing else",
        **SMALL,
        engine=MAMBA2,
    ),
    "granite-4-h": Recipe(
        family="granite_hybrid",
        purpose="three Mamba2 layers to one of full attention",
        full_every=4,
        **SMALL,
        engine=MAMBA2_HYBRID,
    ),
    "falcon-h1": Recipe(
        family="falcon_h1",
        purpose="Mamba2 and full attention side by side in each layer",
        **SMALL,
        engine=MAMBA2_HYBRID,
    ),
    "nemotron-h": Recipe(
        family="nemotron_h",
        purpose="layers that are either Mamba2, full attention or an MLP",
        details={"hybrid_override_pattern": "M-M-M*-"},
        **{**SMALL, "layers": 7},
        engine=MAMBA2_HYBRID,
    ),
    "zamba2": Recipe(
        family="zamba2",
        purpose="Mamba2 layers and one attention block whose weights two layers share",
        details={"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
        **SMALL,
        engine=MAMBA2_HYBRID,
    ),
}
"""Every tiny model, by name."""
