"""Fuzz every target for some time: `python -m lab.fuzz --seconds 300`; writes build/fuzz.

Needs atheris (`requirements/fuzz.txt`). What the fuzzer has learned stays in build/fuzz/TARGET/corpus,
and the next run goes on with it. An input that fails is kept beside it, and is to become a file of
`tests/golden/inputs`.
The status is 0 where none did.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from lab import report
from lab.fuzz import inputs
from lab.fuzz.targets import TARGETS

DIRECTORY = report.BUILD / "fuzz"
MEMORY_MIB = 1024
"""More than this in one process is a failure."""
INPUT_SECONDS = 20
"""One input that takes longer is a failure; a machine that others use makes it wait."""
_DONE = re.compile(rb"Done (\d+) runs in (\d+) second")
_COVERED = re.compile(rb"cov: (\d+)")


def fuzz(name: str, seconds: int) -> dict[str, int]:
    """Fuzz one target in a process of its own; returns figures: `status` is 0 where nothing failed."""
    place = DIRECTORY / name
    known, begun = place / "corpus", place / "seeds"
    known.mkdir(parents=True, exist_ok=True)
    begun.mkdir(exist_ok=True)
    for number, data in enumerate(inputs.known(name)):
        (begun / str(number)).write_bytes(data)
    command = [
        *(sys.executable, "-m", "lab.fuzz.drive", name),
        f"-max_total_time={seconds}",
        f"-max_len={TARGETS[name].longest}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-timeout={INPUT_SECONDS}",
        f"-artifact_prefix={place}/failed-",
        "-print_final_stats=1",
        *(str(known), str(begun)),
    ]
    log = place / "log"
    with log.open("wb") as out:
        run = subprocess.run(
            command, cwd=report.REPOSITORY, stdout=out, stderr=out, env=os.environ, check=False
        )
    text = log.read_bytes()
    done = _DONE.findall(text)
    return {
        "runs": int(done[-1][0]) if done else 0,
        "seconds": int(done[-1][1]) if done else 0,
        "places": int((_COVERED.findall(text) or [b"0"])[-1]),
        "inputs": len(list(known.iterdir())),
        "status": run.returncode,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; see above for the status."""
    parser = argparse.ArgumentParser(prog="python -m lab.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help="only these")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print(
            "atheris is missing: .venv/bin/python -m pip install -r requirements/fuzz.txt",
            file=sys.stderr,
        )
        return 2
    each = max(options.seconds // len(options.targets), 1)
    found = {}
    for name in options.targets:
        found[name] = fuzz(name, each)
        print(name, *(f"{value:,} {what}" for what, value in found[name].items()), flush=True)
    print(f"{sum(one['runs'] for one in found.values()):,} executions in all")
    document = {"targets": found, "machine": report.machine(), "versions": report.versions()}
    (DIRECTORY / "report.json").write_text(json.dumps(document, indent=2) + "\n")
    failed = [name for name, one in found.items() if one["status"]]
    for name in failed:
        print(f"{name} failed: see {DIRECTORY / name}/log and failed-*", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
