"""One target under the coverage-guided fuzzer: `python -m lab.fuzz.drive TARGET [libFuzzer's options]`.

A process of its own for each: the fuzzer ends it when it is done, and where an input fails.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Fuzz; does not return."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["kvstrata.chunks", "kvstrata.tiers", "kvstrata.wire"]):
        targets: Any = importlib.import_module("lab.fuzz.targets")
    with tempfile.TemporaryDirectory(prefix="kvstrata-fuzz-") as scratch:
        run = targets.TARGETS[sys.argv[1]].make(Path(scratch))
        atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
