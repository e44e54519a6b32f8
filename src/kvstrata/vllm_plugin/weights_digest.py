"""A digest of the weights that a worker holds in memory; runs in the workers.

It tells weights apart, and no more: whoever wants two sets of weights with one digest can make them. One pass
over the memory, on the device that holds it; some 20 ms for 16 GB on a data-centre GPU by its bandwidth.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

READ_OUT_ROWS = 256
PIECE_BYTES = 16 << 20
"""Memory that a pass needs besides the weights is a few times this."""
_STEPS = (-7046029254386353131, -4417276706812531889)
"""Odd, so that multiplying loses nothing; as signed 64-bit numbers."""
_LOGICAL = (1 << 35) - 1
"""What makes a shift of a signed number by 29 bits one that fills in zeros."""


def weights_digest(worker: Any) -> str:
    """Hexadecimal digest of all parameters and buffers of a worker's model and of its draft model.

    Args:
        worker: vLLM's; passed by `collective_rpc`.

    Raises:
        RuntimeError: some weight cannot be read.
    """
    whole = hashlib.blake2b(digest_size=16)
    with torch.inference_mode():
        for model in _models(worker):
            hidden = {id(module.weight): module for module in _hiding(model)}
            for name, tensor in _tensors(model):
                head = f"{name} {tensor.dtype} {tuple(tensor.shape)} "
                whole.update(head.encode())
                if id(tensor) in hidden:
                    _read_out(hidden[id(tensor)], whole.update)
                elif tensor.numel() or tensor.dim() > 1:
                    whole.update(tensor_digest(tensor))
                else:
                    raise RuntimeError(f"the weight {name} is not where others are")
    return whole.hexdigest()


def tensor_digest(tensor: torch.Tensor) -> bytes:
    """16 bytes for the values of a tensor of any type and layout."""
    sums = torch.zeros(len(_STEPS), dtype=torch.int64, device=tensor.device)
    for number, words in enumerate(_words(tensor)):
        place = torch.arange(1, words.numel() + 1, dtype=torch.int64, device=words.device)
        for index, step in enumerate(_STEPS):
            mixed = (words + place * step) * (step ^ (number << 1))
            mixed ^= (mixed >> 29) & _LOGICAL
            mixed *= step
            sums[index] = sums[index] * _STEPS[0] + mixed.sum()
    return b"".join(int(one).to_bytes(8, "little", signed=True) for one in sums.tolist())


def _models(worker: Any) -> Iterator[torch.nn.Module]:
    yield worker.model_runner.get_model()
    draft = getattr(getattr(worker.model_runner, "drafter", None), "model", None)
    if isinstance(draft, torch.nn.Module):
        yield draft


def _hiding(model: torch.nn.Module) -> Iterator[Any]:
    """Linear layers whose weight only their kernel knows: the CPU back end packs it and lets go of it."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and not weight.numel() and _inputs(module):
            yield module


def _inputs(module: Any) -> int:
    """Inputs of such a layer; 0 where it is none."""
    if not hasattr(module, "cpu_linear"):
        return 0
    names = ("input_size_per_partition", "input_size", "embedding_dim")
    return next((int(getattr(module, name)) for name in names if hasattr(module, name)), 0)


def _read_out(module: Any, update: Callable[[bytes], None]) -> None:
    """A hidden weight, exactly: the answers of the layer to each input alone."""
    inputs = _inputs(module)
    for begin in range(0, inputs, READ_OUT_ROWS):
        rows = min(READ_OUT_ROWS, inputs - begin)
        alone = torch.zeros(rows, inputs, dtype=module.weight.dtype)
        alone[torch.arange(rows), torch.arange(begin, begin + rows)] = 1
        update(tensor_digest(module.cpu_linear(alone, module.weight, None)))


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _words(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor's bytes as int64 [n], piece by piece; the end filled with zeros."""
    if not tensor.numel():
        return
    rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
    row_bytes = max(rows[0].numel() * rows.element_size(), 1)
    for part in rows.split(max(PIECE_BYTES // row_bytes, 1)):
        raw = part.contiguous().view(-1).view(torch.uint8)
        for begin in range(0, raw.numel(), PIECE_BYTES):
            piece = raw[begin : begin + PIECE_BYTES]
            # Aligned for certain, and a multiple of 8 bytes.
            words = torch.zeros(-(-piece.numel() // 8), dtype=torch.int64, device=piece.device)
            words.view(torch.uint8)[: piece.numel()] = piece
            yield words
