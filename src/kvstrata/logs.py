"""Log lines for programs: one event a line, as JSON with stable names of fields.

Processes that kvstrata starts itself ask `configure`. An engine's logging is vLLM's own: a file that
`VLLM_LOGGING_CONFIG_PATH` names has it use `JsonFormatter` (deploy/logging/vllm.json).
"""

import json
import logging
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from kvstrata.errors import ConfigError

VARIABLE = "KVSTRATA_LOG"
"""Environment variable with one of `FORMATS`."""
FORMATS = ("text", "json")
FIELDS = ("time", "level", "logger", "message", "process", "pid")
"""Of every line; `exception` and `stack` are there where the event has them."""
_TEXT = "%(asctime)s %(levelname)s %(message)s"


class JsonFormatter(logging.Formatter):
    """Each record as one line of JSON in ASCII, whatever is logged.

    Fields are `FIELDS`: `time` is RFC 3339 in UTC with milliseconds, `process` vLLM's name of the process
    where it gives one. An exception's traceback is one field, with its line ends escaped.
    """

    def __init__(
        self, fmt: str | None = None, datefmt: str | None = None, style: str = "%"
    ) -> None:
        """Arguments are those of `logging.Formatter`, which `dictConfig` passes; none changes a line."""
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "process": getattr(record, "vllm_process_name", None) or record.processName,
            "pid": record.process,
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line)


def _message(record: logging.LogRecord) -> str:
    """What was said; with arguments that do not fit its text, both as they are."""
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  # boundary: an argument's own code must not cost the line
        return f"{record.msg!s} (arguments of types {', '.join(_types(record.args))})"


def _types(arguments: object) -> list[str]:
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    return [type(one).__name__ for one in given]


def wanted(environment: Mapping[str, str]) -> str:
    """The format that the environment asks for; text unless it says otherwise.

    Raises:
        ConfigError: none that there is.
    """
    named = environment.get(VARIABLE) or FORMATS[0]
    if named not in FORMATS:
        raise ConfigError(f"{VARIABLE} is {' or '.join(FORMATS)}; got {named!r:.100}")
    return named


def configure(environment: Mapping[str, str], stream: TextIO | None = None) -> bool:
    """Log from INFO on, in the format that the environment asks for.

    As JSON, what would be printed otherwise is logged too: Python's warnings, and exceptions that nobody
    catches.

    Args:
        environment: of the process.
        stream: to write to; stderr if None.

    Returns:
        Whether lines are JSON.

    Raises:
        ConfigError: the environment asks for a format that there is not.
    """
    as_json = wanted(environment) == "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    if as_json:
        logging.captureWarnings(True)
        log = logging.getLogger("kvstrata")
        sys.excepthook = lambda kind, error, trace: log.critical(
            "the process ends", exc_info=(kind, error, trace)
        )
        threading.excepthook = lambda failed: log.critical(
            "a thread ended", exc_info=failed.exc_value or failed.exc_type()
        )
    return as_json
