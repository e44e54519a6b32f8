"""System calls of a serving engine fail: its answers stay right and in time, its metrics tell, it recovers.

One engine serves through all of it; `lab.faulty_io` makes the faults that cannot be made for real.
"""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvstrata.tiers.catalog import check_record, iter_namespaces, iter_records
from lab.faulty_io.control import FaultyIOError, Rule
from tests.e2e.faulty_engine import KNOWN, WHOLE, FaultyEngine, Metrics, faulty_engine, grown
from tests.e2e.storage_fault_cases import FAULTS, NAMING, RECORDS, Fault

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyEngine]:
    try:
        with faulty_engine(tmp_path_factory.mktemp("faults")) as made:
            yield made
    except FaultyIOError as error:
        pytest.skip(str(error))


@contextmanager
def told(served: FaultyEngine, names: tuple[str, ...]) -> Iterator[Metrics]:
    """Metrics that rose meanwhile, filled in at the end; waits until those with these beginnings have."""
    found: Metrics = {}
    before = served.metrics()

    def missing() -> list[str]:
        found.clear()
        found.update(grown(before, served.metrics()))
        return [name for name in names if not any(one.startswith(name) for one in found)]

    yield found
    deadline = time.monotonic() + 20.0
    while lacking := missing():
        assert time.monotonic() < deadline, f"{lacking} did not rise; {found} did"
        time.sleep(0.1)


def serve(served: FaultyEngine, fault: Fault) -> None:
    """Known and new prompts, in turn."""
    found = served.known()
    assert fault.cached is None or found == [fault.cached] * KNOWN
    for again in range(3):
        seed = served.fresh()
        if not fault.hangs:
            served.settle()
        if fault.stored is not None:
            assert served.ask(seed) == (WHOLE if fault.stored else 0)
        cached = served.ask(again)
        assert fault.cached is None or cached == fault.cached


def records(served: FaultyEngine) -> list[Path]:
    """Files of all chunks."""
    return [
        file.path
        for namespace in iter_namespaces(served.root)
        for file in iter_records(namespace.path)
        if not file.temporary
    ]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_answers_are_right_and_in_time_and_metrics_tell(served: FaultyEngine, fault: Fault) -> None:
    descriptors = served.descriptors()
    lines = {operation: served.lines(f"{operation}s at") for operation in ("read", "write")}
    served.faults.set(fault.rules)
    try:
        with told(served, fault.tells) as found:
            serve(served, fault)
        assert not [name for name in fault.quiet if name in found], found
        assert any(count.met for count in served.faults.counts())
    finally:
        served.faults.clear()
        served.recover()
    for operation, count in lines.items():
        # One line when it is set aside and one when it is taken back, however many requests there were.
        aside = f"set_aside{{operation={operation},tier=filesystem}}" in found
        more = served.lines(f"{operation}s at") - count
        assert more % 2 == 0 and more >= 2 * aside
        assert more <= 2 or not fault.steady
    assert served.descriptors() == descriptors
    assert not served.temporary()


def test_writes_that_were_lost_are_noticed_when_they_are_read(served: FaultyEngine) -> None:
    served.faults.set([Rule("write", "lose", path="*.tmp-*")])
    seed = served.fresh()
    served.settle()
    served.faults.clear()
    with told(served, ("bad_records{reason=truncated}",)):
        assert served.ask(seed) == 0
    served.settle()
    assert served.ask(seed) == WHOLE


@pytest.mark.parametrize("days", [2, -2, 4000])
def test_the_wall_clock_jumps(served: FaultyEngine, days: int) -> None:
    with told(served, ("tokens{tier=filesystem}",)) as found:
        served.faults.jump(days * 86400.0)
        assert served.known() == [WHOLE] * KNOWN
        seed = served.fresh()
        served.settle()
        assert served.ask(seed) == WHOLE
        served.faults.jump(0)
        assert served.ask(seed) == WHOLE
    assert not [name for name in found if name.startswith(("read_deadlines", "writes_dropped"))]
    served.recover()


@pytest.mark.parametrize("what", ["root", "namespace", "first level", "second level"])
def test_a_directory_is_replaced_by_a_file(served: FaultyEngine, what: str) -> None:
    (namespace,) = iter_namespaces(served.root)
    first = [path for path in namespace.path.iterdir() if path.is_dir()]
    places = {
        "root": [served.root],
        "namespace": [namespace.path],
        "first level": first,
        "second level": [below for path in first for below in path.iterdir()],
    }[what]
    away = {path: path.with_name(path.name + "-away") for path in places}
    for path, moved in away.items():
        path.rename(moved)
        path.write_text("in the way")
    with told(served, ("writes_dropped{reason=ENOTDIR}",)) as found:
        assert served.known() == [0] * KNOWN
        served.fresh()
        served.settle()
    assert "tokens{tier=filesystem}" not in found
    for path, moved in away.items():
        path.unlink()
        moved.rename(path)
    served.recover()


def test_two_engines_publish_the_same_chunks_at_once(served: FaultyEngine) -> None:
    with served.another() as other:
        before = [one.metrics() for one in (served, other)]
        seed = served.unused()
        served.faults.set([Rule(NAMING, "hang", path=RECORDS)])
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda one: one.ask(seed), (served, other))) == [0, 0]
            ends = [pool.submit(one.settle) for one in (served, other)]
            served.until(lambda: served.faults.counts()[0].met >= 2, "both are about to publish")
            served.faults.clear()
            for end in ends:
                end.result()
        for one, metrics in zip((served, other), before, strict=True):
            rose = grown(metrics, one.metrics())
            assert not [name for name in rose if name.startswith(("writes_dropped", "bad_"))], rose
            assert one.ask(seed) == WHOLE
    for path in records(served):
        check_record(path)
    assert not served.temporary()
    served.recover()


def test_a_chunk_that_is_removed_while_it_is_read_is_read_whole(served: FaultyEngine) -> None:
    with told(served, ()) as found, ThreadPoolExecutor(1) as pool:
        # The first chunk's file is open and its header read; the others come after it.
        served.faults.set([Rule("read", "hang", path=RECORDS, times=1, after=1)])
        answer = pool.submit(served.ask, 0)
        served.until(lambda: served.faults.counts()[0].met == 1, "a chunk is being read")
        for path in records(served):
            path.unlink()
        served.faults.clear()
        cached = answer.result()
    assert not [name for name in found if name.startswith("bad_records")], found
    # All of a prompt's chunks share the file that is open, names or no names.
    assert cached == WHOLE or "read_deadlines{}" in found
    served.recover()


def test_files_are_removed_all_the_time_while_two_engines_serve(served: FaultyEngine) -> None:
    chance, stop = random.Random(4), threading.Event()

    def remove() -> None:
        while not stop.is_set():
            for path in records(served):
                if chance.random() < 0.3:
                    path.unlink(missing_ok=True)
            stop.wait(0.02)

    def ask(one: FaultyEngine) -> list[int]:
        return [cached for _ in range(2) for cached in one.known()]

    with served.another() as other:
        before = [one.metrics() for one in (served, other)]
        remover = threading.Thread(target=remove)
        remover.start()
        try:
            with ThreadPoolExecutor(2) as pool:
                cached = [n for found in pool.map(ask, (served, other)) for n in found]
        finally:
            stop.set()
            remover.join()
        assert any(count < WHOLE for count in cached)
        for one, metrics in zip((served, other), before, strict=True):
            rose = grown(metrics, one.metrics())
            assert not [name for name in rose if name.startswith("bad_records")], rose
    served.recover()
