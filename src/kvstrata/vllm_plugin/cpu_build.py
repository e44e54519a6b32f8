"""What vLLM's CPU build needs before it can serve Mamba2 with prefix caching; nothing elsewhere.

Since 0.32 a Mamba2 layer tells the scheduler that one forward pass can leave its state at a block's
edge and run on (`num_prefill_checkpoint_blocks`), so the scheduler no longer ends a step there. The
CUDA scan does that; the CPU one computes only the state at the end, and the layer then fails with an
IndexError on the first prompt that crosses a block's edge. Without that promise the scheduler ends a
step at each edge that is kept, as it does for every other kind of state, and the CPU build works.
"""


def mend() -> bool:
    """Take the promise back if this is the CPU build and it makes it. Repeatable.

    Returns:
        whether Mamba2 layers now describe themselves as other recurrent layers do because of this call.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    # Only here: on other platforms nobody pays for the import.
    from vllm.model_executor.layers.mamba.abstract import MambaBase
    from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2

    if MambaMixer2.get_kv_cache_spec is MambaBase.get_kv_cache_spec:
        return False
    MambaMixer2.get_kv_cache_spec = MambaBase.get_kv_cache_spec
    return True
