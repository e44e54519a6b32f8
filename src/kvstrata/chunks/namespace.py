"""Namespaces: which engines' bytes are interchangeable.

A namespace is named by a fingerprint over every fact that changes the bytes of a chunk or the meaning of
its key. Engines that differ in one such fact never see each other's files.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstrata.chunks.checksum import ALGORITHM
from kvstrata.chunks.record import FINGERPRINT_BYTES, RECORD_VERSION

NAMESPACE_FILE = "namespace.json"
DESCRIPTION_BYTES = 1 << 20
"""A `namespace.json` that is longer is none."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Namespace:
    """The facts that a namespace covers.

    Attributes:
        model: the model's name, only for people.
        facts: JSON values by name, nested as needed; every one enters the fingerprint.
    """

    model: str
    facts: Mapping[str, Any]

    @property
    def covers(self) -> dict[str, Any]:
        """`facts`, and what this release adds to them: all that enters the fingerprint."""
        return {
            "record_version": RECORD_VERSION,
            "checksum": ALGORITHM,
            **self.facts,
        }

    @property
    def fingerprint(self) -> bytes:
        """16 bytes: the head of SHA-256 over the facts as canonical JSON."""
        text = json.dumps(self.covers, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).digest()[:FINGERPRINT_BYTES]

    @property
    def directory_name(self) -> str:
        """`<model>-<fingerprint>`, safe as a file name; the model part is its last path component."""
        base = self.model.rstrip("/").rsplit("/", 1)[-1]
        safe = _UNSAFE.sub("_", base).strip("._") or "model"
        return f"{safe[:64]}-{self.fingerprint.hex()}"

    def to_json(self) -> str:
        """What `namespace.json` holds: fingerprint, model and all covered facts, indented."""
        document = {
            "fingerprint": self.fingerprint.hex(),
            "model": self.model,
            "covers": self.covers,
        }
        return json.dumps(document, indent=2, sort_keys=True) + "\n"
