"""The support table of docs/support.md, made from what the zoo's tests saw.

`make test-zoo` leaves one row a model in build/zoo; `python -m lab.support` writes the table.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.recipes import RECIPES
from lab.refused import REFUSED

REPOSITORY = Path(__file__).resolve().parent.parent
ROWS = REPOSITORY / "build" / "zoo"
"""One JSON file a model, written by tests/e2e/test_zoo.py."""

REUSE = REPOSITORY / "build" / "reuse"
"""Two JSON files a hybrid, written by tests/e2e/test_junctions.py."""

DOCUMENT = REPOSITORY / "docs" / "support.md"

BENCHMARKS = {"llama-bench", "gemma3-bench", "wide-half", "wide-half-w1024", "wide-three-quarters"}
"""Models that differ from others in size only."""

BYTES_ONLY = {"deepseek-mla"}
"""Models whose answers say nothing on a CPU: their cached bytes are compared instead."""

ZOO = [name for name in RECIPES if name not in BENCHMARKS | BYTES_ONLY]
"""Models whose answers are compared."""

REMARKS = {
    "cohere2": "a window of 513 tokens: 512 back and the token itself",
    "deepseek-mla": "bytes of the pages compared, not answers: without AMX vLLM turns prefix caching off "
    "for latent attention (the test turns it on), and its decode disagrees with its own prefill",
    "falcon-h1": "give `--block-size 384`; Mamba2 on the CPU build [as below](#mamba2-on-the-cpu-build)",
    "gemma4": "pages of equal size, blocks of different size",
    "gemma3-5to1": "six groups, one of them full",
    "gemma3-w1024": "groups of one layer",
    "gpt-oss": "attention sinks, a mixture of experts",
    "granite-4-h": "as falcon-h1",
    "mamba2": "no `--block-size`: blocks of 16 tokens; Mamba2 on the CPU build as below",
    "nemotron-h": "as falcon-h1",
    "qwen3-next": "give `--block-size 256`; the CPU's kernels know bfloat16 only",
    "qwen3.5": "as qwen3-next; text only, vLLM's module wants torchvision for pictures",
    "zamba2": "as falcon-h1; one attention block, shared by two layers",
}

HEAD = (
    "| model | groups: tokens a block, bytes a block | dtype | answers identical from | largest difference "
    "| reused of 2,000, of 2,048 tokens: device, storage | reused after parting at 1,500 tokens: device, "
    "storage | forged bytes of a group change the answer | remarks |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


def row(found: Mapping[str, Any]) -> str:
    """One model's line of the table.

    Args:
        found: what the zoo's test wrote about it.
    """
    cells = [
        f"`{found['model']}`",
        _groups(found["groups"]),
        found["dtype"],
        ("bytes: " if found["model"] in BYTES_ONLY else "") + _identical(found["differ"]),
        f"{found['noise']:.0e} (allowed {found['allowed']:g})" if found["noise"] else "none",
        _reused(found),
        _parted(found["cached"]),
        _controls(found["controls"], found["blind"]),
        REMARKS.get(found["model"], ""),
    ]
    return "| " + " | ".join(cells) + " |\n"


def _groups(groups: list[Mapping[str, Any]]) -> str:
    kinds = Counter(
        f"{group['kind']}{' ' + str(group['window_tokens']) if group['window_tokens'] else ''}: "
        f"{group['tokens_per_block']}, {sum(group['rank_block_bytes']):,}"
        for group in groups
    )
    return "<br>".join(
        f"{number} x {kind}" if number > 1 else kind for kind, number in kinds.items()
    )


def _identical(differ: Mapping[str, list[int]]) -> str:
    same = [tier for tier, lengths in differ.items() if not lengths and "branch" not in tier]
    return ", ".join(same)


def _error(found: Mapping[str, Any]) -> str:
    # What validators add about their input is about this machine.
    return " ".join(str(found["error"]).partition(" [type=")[0].split())


def _reused(found: Mapping[str, Any]) -> str:
    places = [found["lengths"].index(length) for length in (2000, 2048)]
    cached = found["cached"]
    return "; ".join(f"{cached['device'][i]:,}, {cached['storage'][i]:,}" for i in places)


def _parted(cached: Mapping[str, list[int]]) -> str:
    if "branch from storage" not in cached:
        return "not asked"
    return f"{cached['branch on the device'][0]:,}, {cached['branch from storage'][0]:,}"


def _controls(controls: Mapping[str, float], blind: Mapping[str, str]) -> str:
    told = [
        f"{group}: cannot tell ({blind[group]})"
        if group in blind
        else f"{group}: {'other tokens' if math.isinf(apart) else f'by {apart:.2g}'}"
        for group, apart in controls.items()
    ]
    if not blind and all(math.isinf(apart) for apart in controls.values()):
        return "yes" if len(told) == 1 else f"yes, each of {len(told)}"
    return "; ".join(told)


def tables(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The document's tables.

    Args:
        rows: what the tests wrote, by model.

    Raises:
        KeyError: a model has no row.
    """
    supported = [name for name in RECIPES if name not in BENCHMARKS]
    refused = "| kind | what the engine says |\n|---|---|\n"
    for name in REFUSED:
        refused += f"| `{name}` | `{_error(rows[name])}` |\n"
    return {
        "support": HEAD + "".join(row(rows[name]) for name in supported),
        "refused": refused,
    }


def sharing(found: Iterable[Mapping[str, Any]]) -> str:
    """The table of what prompts and turns share.

    Args:
        found: what the tests of junctions and turns wrote, one entry a model and question.
    """
    cells: dict[str, dict[str, str]] = {}
    for entry in found:
        served = [", ".join(f"{n:,}" for n in entry[place]) for place in ("device", "storage")]
        cells.setdefault(entry["model"], {})[entry["what"]] = " | ".join(served)
    head = (
        "| model | three prompts, 1,920 tokens shared: device | storage | next turn, 1,000 tokens known: "
        "device | storage |\n|---|---|---|---|---|\n"
    )
    lines = [
        f"| {name} | {cells[name].get('junction', '- | -')} | {cells[name].get('turn', '- | -')} |\n"
        for name in RECIPES
        if name in cells
    ]
    return head + "".join(lines)


def fill(document: str, contents: Mapping[str, str]) -> str:
    """`document` with each table between its marks replaced."""
    for name, table in contents.items():
        before, start, rest = document.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert start and end, f"no marks for {name}"
        document = before + start + table + end + after
    return document


def main() -> int:
    """Write the tables; 1 if a model was not examined."""
    rows = {path.stem: json.loads(path.read_text()) for path in ROWS.glob("*.json")}
    wanted = [name for name in [*RECIPES, *REFUSED] if name not in BENCHMARKS]
    missing = [name for name in wanted if name not in rows]
    if missing:
        print(f"no row for {', '.join(missing)}: run make test-zoo first", file=sys.stderr)
        return 1
    reuse = [json.loads(path.read_text()) for path in sorted(REUSE.glob("*.json"))]
    contents = {**tables(rows), "sharing": sharing(reuse)}
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), contents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
