"""Real engines for the end-to-end tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engine import Engine, Nursery

Start = Callable[..., Engine]


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Forks engines; started once."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture
def start(tmp_path: Path, nursery: Nursery) -> Iterator[Start]:
    """Starts engines and makes sure that none is left; `path` is the shared directory by default."""
    engines: list[Engine] = []

    def make(model: str, extra: dict[str, Any] | None = None, **settings: Any) -> Engine:
        options = {"path": str(tmp_path / "kv"), "memory": "96MiB"} if extra is None else extra
        log = tmp_path / f"engine{len(engines)}.log"
        engine = Engine(model, log, options, nursery=nursery, **settings)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.kill()
