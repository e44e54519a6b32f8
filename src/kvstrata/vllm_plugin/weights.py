"""A fingerprint of a model's weights that costs a moment: names, sizes and sampled bytes of its files."""

import hashlib
import os
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
SAMPLES = 16
SAMPLE_BYTES = 16 << 10


def weights_fingerprint(directory: Path) -> str | None:
    """Hexadecimal digest over a directory's weight files, or None when it has none.

    Covers each file's name and size, its head (for safetensors: every tensor's name, type, shape and
    place) and `SAMPLES` evenly spread pieces of `SAMPLE_BYTES` bytes. Fine-tuning changes practically
    every weight, so pieces are enough; an edit that misses all of them needs `label` to be told apart.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(path for path in directory.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            for index in range(SAMPLES):
                start = max(size - SAMPLE_BYTES, 0) * index // (SAMPLES - 1)
                digest.update(os.pread(file.fileno(), SAMPLE_BYTES, start))
    return digest.hexdigest()


def model_directory(model: str, revision: str | None) -> Path | None:
    """Where a model's files lie on this machine, or None: a directory, or the hub's local snapshot."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None
