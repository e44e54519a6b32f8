"""A fingerprint of a model's weights that costs a moment: names, sizes and sampled bytes of its files."""

import hashlib
import os
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
SAMPLES = 16
SAMPLE_BYTES = 16 << 10
MAX_HEADER_BYTES = 16 << 20


def weights_fingerprint(place: Path) -> str | None:
    """Hexadecimal digest over a model's weight files, or None when there is none.

    Covers each file's name and size, of safetensors the header (every tensor's name, type, shape and
    place), and `SAMPLES` evenly spread pieces of `SAMPLE_BYTES` bytes, the first and the last among
    them. Fine-tuning changes practically every weight, so pieces are enough; an edit that misses all of
    them needs the option `label` to be told apart.

    Args:
        place: a directory with weight files, or one such file.

    Raises:
        OSError: a file cannot be read.
    """
    within = [place] if place.is_file() else place.iterdir()
    files = sorted(path for path in within if path.suffix in WEIGHT_SUFFIXES)
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                digest.update(_header(file.fileno()))
            for index in range(SAMPLES):
                start = max(size - SAMPLE_BYTES, 0) * index // (SAMPLES - 1)
                digest.update(os.pread(file.fileno(), SAMPLE_BYTES, start))
    return digest.hexdigest()


def _header(fd: int) -> bytes:
    """A safetensors file's header, which begins with its own length; bounded, since it may be damaged."""
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    return os.pread(fd, min(length, MAX_HEADER_BYTES), 8)


def model_place(model: str, revision: str | None) -> Path | None:
    """Where a model lies on this machine, or None: a directory, a file, or the hub's local snapshot."""
    path = Path(model)
    if path.exists():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None  # an address in some other store: its name has to tell it apart
    return Path(found).parent if isinstance(found, str) else None
