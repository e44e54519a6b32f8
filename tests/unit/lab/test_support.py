"""The support table names every model there is, and says what the rows say."""

import math
import re

import pytest

from lab.recipes import RECIPES
from lab.refused import REFUSED
from lab.support import BENCHMARKS, DOCUMENT, REMARKS, fill, row, sharing, tables

GROUP = {"kind": "full", "tokens_per_block": 128, "rank_block_bytes": [1024], "window_tokens": 0}
WINDOW = {**GROUP, "kind": "window", "window_tokens": 512}
FOUND = {
    "model": "cohere2",
    "dtype": "float32",
    "groups": [WINDOW, WINDOW, GROUP],
    "lengths": [2000, 2048],
    "noise": 1.25e-6,
    "allowed": 5e-4,
    "cached": {
        "device": [1920, 1920],
        "storage": [1920, 2047],
        "branch on the device": [1408],
        "branch from storage": [1408],
    },
    "differ": {"device": [], "memory": [], "storage": [2048], "branch from storage": []},
    "controls": {"0": math.inf, "1": math.inf, "2": math.inf},
    "blind": {},
}


@pytest.mark.parametrize("name", [name for name in [*RECIPES, *REFUSED] if name not in BENCHMARKS])
def test_the_document_has_a_row_for_every_model(name: str) -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert rows.count(name) == 1


def test_the_document_has_no_row_for_what_is_gone() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert set(rows) <= {*RECIPES, *REFUSED}
    assert set(REMARKS) <= set(RECIPES) and set(RECIPES) >= BENCHMARKS


def test_a_row_says_what_was_found() -> None:
    cells = [cell.strip() for cell in row(FOUND).strip().strip("|").split("|")]
    assert cells[:3] == ["`cohere2`", "2 x window 512: 128, 1,024<br>full: 128, 1,024", "float32"]
    assert cells[3] == "device, memory"  # not storage: one length differed there
    assert cells[4:8] == [
        "1e-06 (allowed 0.0005)",
        "1,920, 1,920; 1,920, 2,047",
        "1,408, 1,408",
        "yes, each of 3",
    ]


def test_a_group_that_cannot_tell_is_not_called_proven() -> None:
    told = row({**FOUND, "controls": {"0": 0.0, "1": 0.25}, "blind": {"0": "forgets"}})
    assert "0: cannot tell (forgets); 1: by 0.25" in told
    assert "yes" not in told


def test_tables_want_every_model() -> None:
    with pytest.raises(KeyError):
        tables({"llama": FOUND})


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    document = "a\n<!-- t -->\nold\n<!-- /t -->\nb\n"
    assert fill(document, {"t": "new\n"}) == "a\n<!-- t -->\nnew\n<!-- /t -->\nb\n"


def test_what_prompts_share_is_a_line_a_model() -> None:
    found = [
        {"model": "gemma4", "what": "junction", "device": [0, 0, 1792], "storage": [0, 1792, 1792]},
        {"model": "gemma4", "what": "turn", "device": [512], "storage": [768]},
        {"model": "llama", "what": "turn", "device": [896], "storage": [896]},
    ]
    lines = sharing(found).splitlines()[2:]
    assert lines == [
        "| llama | - | - | 896 | 896 |",
        "| gemma4 | 0, 0, 1,792 | 0, 1,792, 1,792 | 512 | 768 |",
    ]
