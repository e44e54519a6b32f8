"""Inputs that targets begin with: known files, and what once failed or was hard to find."""

from pathlib import Path

from lab import golden
from lab.fuzz.files import FILES
from lab.fuzz.heads import known_heads

KEPT = golden.STORED / "inputs"
"""One directory for each target; a test runs each of them on every change."""


def known(name: str) -> list[bytes]:
    """All inputs to begin with; the target's name."""
    return [*seeds(name), *(path.read_bytes() for path in sorted((KEPT / name).glob("*")))]


def seeds(name: str) -> list[bytes]:
    """Each known file as it is, and with its checksum made again."""
    if name in ("records", "segments"):
        heads = known_heads()
        chosen = [bytes([flags, number]) for flags in (3, 7) for number in range(len(heads))]
        return [*chosen, *(b"\6" + head.rstrip(b"\0") for head, _ in heads)]
    if name == "files":
        return [bytes([flags, number]) for flags in (0, 3) for number in range(len(FILES))]
    if name == "snapshots":
        return [b"".join(len(p).to_bytes(2, "little") + p for p in golden.snapshot_parts())]
    return [bytes([number]) + path.read_bytes() for number, path in enumerate(_documents())]


def _documents() -> list[Path]:
    """Files for each reader of the target `documents`, in its order."""
    plain = golden.STORED / "plain"
    described = plain / golden.namespace_of("plain").directory_name / "namespace.json"
    return [
        plain / "usage.json",
        described.with_name("terms.json"),
        described,
        plain / ".kvstrata-place",
    ]
