"""Runs inside another release of the package: reads and writes chunks, and tells what came of it as JSON.

Only what all releases have had since the first one is used. Stdin: `Request` of `test_older_releases.py`.
"""

import json
import sys
from pathlib import Path

import kvstrata
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.namespace import Namespace
from kvstrata.tiers.filesystem import FilesystemTier


def main() -> None:
    request = json.load(sys.stdin)
    geometries = {
        group: GroupGeometry(group, GroupKind(kind), tokens, blocks, tuple(sizes), window)
        for group, kind, tokens, blocks, sizes, window in request["geometries"]
    }
    namespace = Namespace(request["model"], request["facts"])
    tier = FilesystemTier(Path(request["root"]), namespace, geometries)
    tier.prepare()
    answers = []
    for name, key, first, text in request["calls"]:
        payload = bytearray.fromhex(text)
        outcome = getattr(tier, name)(bytes.fromhex(key), memoryview(payload), first)
        reason = str(getattr(outcome, "reason", ""))
        answers.append([type(outcome).__name__, reason, payload.hex()])
    json.dump({"package": kvstrata.__file__, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
