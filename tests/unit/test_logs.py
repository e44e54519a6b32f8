"""Every line that is logged as JSON is one line of JSON, with the fields that were promised."""

import io
import json
import logging
import logging.config
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata import logs
from kvstrata.errors import ConfigError

VLLM = Path(__file__).resolve().parents[2] / "deploy" / "logging" / "vllm.json"


def lines(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n")
    found = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    for line in found:
        assert set(logs.FIELDS) <= line.keys() <= {*logs.FIELDS, "exception", "stack"}
        assert datetime.fromisoformat(line["time"]).tzinfo == UTC
        assert line["level"] in logging.getLevelNamesMapping()
    return found


def said(message: Any, *arguments: Any, **settings: Any) -> dict[str, Any]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.Logger("kvstrata.some.place")  # one of its own, without parents
    logger.addHandler(handler)
    logger.warning(message, *arguments, **settings)
    (line,) = lines(stream.getvalue())
    return line


@given(st.text(st.characters(), max_size=50), st.text(st.characters(), max_size=20))
def test_any_text_is_one_line_and_comes_back(text: str, argument: str) -> None:
    whole = f"{text.replace('%', '')} %s"
    line = said(whole, argument)
    assert line["message"] == whole % argument
    assert (line["level"], line["logger"]) == ("WARNING", "kvstrata.some.place")
    assert line["pid"] == os.getpid()


def test_an_exception_is_on_the_same_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        line = said("it failed", exc_info=True)
    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback") and "first\nsecond" in line["exception"]
    assert "exception" not in said("no exception", exc_info=True)  # there is none just now
    assert "test_logs" in said("where", stack_info=True)["stack"]


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("argument", [Unspeakable(), object()], ids=["raises", "does not fit"])
def test_what_cannot_be_said_costs_no_line(argument: object) -> None:
    line = (
        said("%d files", argument)
        if not isinstance(argument, Unspeakable)
        else said("%s", argument)
    )
    assert line["message"].endswith(f"(arguments of types {type(argument).__name__})")


@pytest.fixture
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, list(root.handlers), sys.excepthook, logs.threading.excepthook
    yield
    logging.captureWarnings(False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    sys.excepthook, logs.threading.excepthook = before[2:]


@pytest.mark.usefixtures("as_it_was")
def test_the_environment_chooses() -> None:
    stream = io.StringIO()
    assert not logs.configure({}, stream)
    logging.getLogger("kvstrata.x").info("plain")
    assert stream.getvalue().endswith("INFO plain\n")
    stream = io.StringIO()
    assert logs.configure({logs.VARIABLE: "json"}, stream)
    logging.getLogger("kvstrata.x").info("%d", 7)
    logging.getLogger("kvstrata.x").debug("not told")
    warnings.warn("old\nthing", DeprecationWarning, stacklevel=1)
    try:
        raise KeyError("x")
    except KeyError as error:
        sys.excepthook(KeyError, error, error.__traceback__)
    seven, warned, ended = lines(stream.getvalue())
    assert seven["message"] == "7" and "old\nthing" in warned["message"]
    assert ended["level"] == "CRITICAL" and "KeyError" in ended["exception"]


def test_a_format_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="KVSTRATA_LOG is text or json; got 'yaml'"):
        logs.configure({logs.VARIABLE: "yaml"})


TALK = """
import json, logging, logging.config, os
logging.config.dictConfig(json.load(open(os.environ["VLLM_LOGGING_CONFIG_PATH"])))  # as vLLM does
logging.getLogger("vllm.entrypoints.x").info("from vLLM")
logging.getLogger("vllm.kvstrata").warning("from the plug-in")
logging.getLogger("kvstrata.tiers.keeper").info("from a tier")
logging.getLogger("uvicorn.error").info("from uvicorn")
logging.getLogger("elsewhere").info("not told")
try:
    raise OSError(28, "full")
except OSError:
    logging.getLogger("kvstrata.tiers").exception("a look failed")
"""


def test_vllm_logs_so_with_the_file_that_is_shipped() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TALK],
        env={**os.environ, "VLLM_LOGGING_CONFIG_PATH": str(VLLM)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = lines(done.stdout)
    ours = [
        (one["logger"], one["message"])
        for one in found
        if one["message"].startswith(("from", "a look"))
    ]
    assert ours == [
        ("vllm.entrypoints.x", "from vLLM"),
        ("vllm.kvstrata", "from the plug-in"),
        ("kvstrata.tiers.keeper", "from a tier"),
        ("uvicorn.error", "from uvicorn"),
        ("kvstrata.tiers", "a look failed"),
    ]
    assert "Errno 28" in found[-1]["exception"]
    assert not any(one["logger"] == "elsewhere" for one in found)
