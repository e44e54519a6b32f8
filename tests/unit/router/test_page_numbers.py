"""What the page computes by itself is what Python computes, in a real browser."""

import json
import random

import msgspec
import pytest

from kvstrata.router.sources import sources_of
from kvstrata.routing.decision import Appraisal
from tests.unit.router.page_browser import devtools_of_a_browser, tab
from tests.unit.router.page_state import appraisal
from tests.unit.router.router_lab import fleet, run

__all__ = ["devtools_of_a_browser"]  # a fixture
FORMATS = [
    ("count(0)", "0"),
    ("count(9876)", "9\u202f876"),
    ("count(48213)", "48.2\u00a0K"),
    ("count(999960)", "1.00\u00a0M"),
    ("count(null)", "\u2013"),
    ("tokens(1234567)", "1.23\u00a0M\u00a0tok"),
    ("bytes(0)", "0\u00a0B"),
    ("bytes(1023)", "1023\u00a0B"),
    ("bytes(1536)", "1.50\u00a0KiB"),
    ("bytes(1024 ** 3)", "1.00\u00a0GiB"),
    ("bytes(1024 ** 3 - 1)", "1.00\u00a0GiB"),
    ("seconds(0)", "0\u00a0s"),
    ("seconds(0.00042)", "0.42\u00a0ms"),
    ("seconds(0.0341)", "34.1\u00a0ms"),
    ("seconds(0.9999)", "1.00\u00a0s"),
    ("seconds(-0.5)", "-500\u00a0ms"),
    ("seconds(200)", "3\u00a0min\u00a020\u00a0s"),
    ("seconds(undefined)", "\u2013"),
    ("long(0.2)", "0\u00a0s"),
    ("long(60)", "1\u00a0min"),
    ("long(90061)", "1\u00a0d\u00a01\u00a0h"),
    ("share(0)", "0\u00a0%"),
    ("share(0.001)", "<1\u00a0%"),
    ("share(0.999)", ">99\u00a0%"),
    ("share(1)", "100\u00a0%"),
    ("factor(0)", "\u00d71.00"),
    ("factor(Math.log(12.5))", "\u00d712.5"),
]


def test_numbers_and_terms_are_what_they_are_in_python(devtools: str) -> None:
    draw = random.Random(5)
    cases = []
    for _ in range(300):
        tokens = draw.randrange(1, 20_000)
        one = appraisal(draw, "a", tokens, draw.choice([0, 0.3, 0.9, 1.0]))
        one["terms"]["overlap"] = draw.choice([0.0, 0.004])
        cases.append((one, tokens))

    async def go() -> None:
        async with fleet() as router, tab(devtools) as page:
            await page.go(f"http://127.0.0.1:{router.port}/ui")
            asked = ", ".join(f"f.{call}" for call, _ in FORMATS)
            got = await page.value(f"import('/ui/format.js').then((f) => [{asked}])")
            assert got == [wanted for _, wanted in FORMATS]
            got = await page.value(
                f"import('/ui/terms.js').then((t) => {json.dumps(cases)}"
                ".map(([one, tokens]) => [t.firstToken(one), t.foreseen(one, tokens)]))"
            )
        for (one, tokens), (first, parts) in zip(cases, got, strict=True):
            known = msgspec.convert(one, Appraisal)
            assert first == pytest.approx(known.terms.first_token)
            wanted = sources_of(known, tokens, None)
            for name in ("device", "memory", "storage", "computed"):
                assert abs(parts[name] - getattr(wanted, name)) <= 1, (name, one, tokens)

    run(go())
