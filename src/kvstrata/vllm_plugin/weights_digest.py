"""A digest of the weights that a worker holds in memory; runs in the workers.

It tells weights apart, and no more: whoever wants two sets of weights with one digest can make them. One pass
over the memory, on the device that holds it; some 20 ms for 16 GB on a data-centre GPU by its bandwidth.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

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
        RuntimeError: some weight's memory cannot be read as bytes.
    """
    whole = hashlib.blake2b(digest_size=16)
    with torch.inference_mode():
        for model in _models(worker):
            for name, tensor in _tensors(model):
                head = f"{name} {tensor.dtype} {tuple(tensor.shape)} "
                whole.update(head.encode() + tensor_digest(tensor))
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
