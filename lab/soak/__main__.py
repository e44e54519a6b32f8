"""Engines on one directory, random faults, requests with known answers.

`python -m lab.soak --minutes 30 --seed 1`; writes build/soak/report.json and report.md. The status is 0 if
no answer was wrong, nothing hung or died that should not, and nothing leaked.
"""

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kvstrata.sizes import format_size, parse_size
from lab.exclusive import OccupiedError, exclusive
from lab.models import ensure
from lab.soak import report
from lab.soak.engines import EngineError
from lab.soak.faults import kinds
from lab.soak.place import open_place
from lab.soak.plan import CYCLE, ENGINES, WARM, rounds
from lab.soak.run import MODEL, Soak

FAILED = 1
EVERY = 10
"""Rounds between two lines of progress."""
END_MINUTES = 0.5
"""Of the time that was given, for the end: taking storage back, stopping."""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="start and end included")
    parser.add_argument("--rounds", type=int, help="end after so many rounds instead")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and faults")
    parser.add_argument("--plan", action="store_true", help="print --rounds of the plan, and end")
    parser.add_argument(
        "--control",
        action="store_true",
        help="also forge records so that no reader can know: wrong answers must be found",
    )
    parser.add_argument(
        "--calm", action="store_true", help="no faults: engines are only restarted and killed"
    )
    parser.add_argument(
        "--capacity", type=parse_size, default=0, help="bound of the directory, such as 24MiB"
    )
    parser.add_argument("--engines", type=int, default=ENGINES, help="on one directory, 2 or more")
    parser.add_argument("--output", type=Path, default=report.DIRECTORY, help="directory")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; see above for the status."""
    options = _parse(arguments)
    if options.plan:
        return _print_plan(options)
    try:
        with exclusive(options.output / ".lock"):
            return _soak(options)
    except OccupiedError:
        print(f"soak: another one writes to {options.output}; give --output", file=sys.stderr)
        return FAILED


def _print_plan(options: argparse.Namespace) -> int:
    with open_place() as place:
        planned = rounds(
            options.seed,
            kinds(place, control=options.control, calm=options.calm),
            options.engines,
        )
        for one in itertools.islice(planned, options.rounds or 100):
            sizes = "+".join(str(len(prompts)) for prompts in one.prompts)
            happens = [f"end {window.kind}" for window in one.ends]
            happens += [f"begin {w.kind} (engine {w.engine})" for w in one.begins]
            happens += [f"{strike.kind} (engine {strike.engine})" for strike in one.strikes]
            happens += ["check"] if one.check else []
            print(f"{one.number:5}  {sizes}  {'; '.join(happens)}")
    return 0


def _soak(options: argparse.Namespace) -> int:
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} s  {text}", flush=True)

    def goes_on(done: int) -> bool:
        if done % EVERY == 0:
            tally = soak.tally
            say(
                f"{done} rounds, {tally.requests} requests, {tally.wrong} wrong, {len(tally.hangs)} hangs, "
                f"{tally.done.total()} faults, {len(tally.leaks)} leaks"
            )
        if options.rounds is not None:
            return done < int(options.rounds)
        # On a slow machine the start alone may take minutes: one cycle is always done.
        return done < WARM + CYCLE or time.monotonic() - begun < 60 * (
            options.minutes - END_MINUTES
        )

    logs = options.output / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    ensure(MODEL)
    with open_place() as place:
        soak = Soak(
            place,
            logs,
            say,
            control=options.control,
            calm=options.calm,
            bound=options.capacity,
            engines=options.engines,
        )
        try:
            soak.run(options.seed, goes_on)
        except EngineError as error:
            soak.tally.crashes.append(str(error))
        finally:  # whatever happened: half an hour is not lost
            facts = {
                "seed": options.seed,
                "minutes": round((time.monotonic() - begun) / 60, 1),
                "engines": options.engines,
                "faults": "of engines alone" if options.calm else "of all kinds",
                "bound": format_size(options.capacity) if options.capacity else "none",
                "file system of its own": "yes" if place.mounted else "no",
            }
            path = report.save(soak.tally, facts, options.output)
    print(path.with_suffix(".md").read_text())
    failed = soak.tally.faults()
    for text in failed:
        print(f"soak: {text}", file=sys.stderr)
    print(f"soak: {'failed' if failed else 'passed'}; {path}")
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
