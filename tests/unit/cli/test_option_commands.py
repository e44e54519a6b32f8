"""`kvstrata options`, and the pool that the other commands read with."""

import json
import threading
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from kvstrata.cli import pool
from kvstrata.cli.main import app
from kvstrata.cli.options import markdown
from kvstrata.options import ENGINE_KEYS, option_table


def test_the_text_shows_every_option_and_its_default() -> None:
    result = CliRunner().invoke(app, ["options"])
    assert result.exit_code == 0
    for row in option_table():
        assert row.name in result.stdout
    assert all(name in result.stdout for name in ENGINE_KEYS)


def test_json() -> None:
    result = CliRunner().invoke(app, ["options", "--json"])
    assert json.loads(result.stdout) == {
        "options": [row._asdict() for row in option_table()],
        "engine_keys": dict(ENGINE_KEYS),
    }


def test_markdown_is_what_the_document_holds() -> None:
    assert CliRunner().invoke(app, ["options", "--markdown"]).stdout == markdown()


def test_a_wrong_flag_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["options", "--yaml"]).exit_code == 2


# --- the pool ------------------------------------------------------------------------------


def test_every_item_once_and_in_order() -> None:
    assert list(pool.each(range(1000), lambda n: n * n, 7)) == [(n, n * n) for n in range(1000)]


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(4, timeout=60)
    results = pool.each(range(8), lambda n: together.wait() >= 0, 4)
    assert all(result for _, result in results)


def test_items_are_read_only_a_few_steps_ahead() -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        while read < 10_000:
            read += 1
            yield read

    for item, _ in pool.each(items(), abs, 2):
        assert read - item <= 8


def test_an_error_ends_it_and_leaves_no_thread() -> None:
    def fail(number: int) -> int:
        if number == 5:
            raise ValueError(number)
        return number

    with pytest.raises(ValueError, match="5"):
        list(pool.each(range(100), fail, 3))
    assert not [t for t in threading.enumerate() if t.name.startswith("kvstrata-cli")]
