"""What is learned outlives a restart, and a file that is no use costs nothing but that."""

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from kvstrata.router.chooser import PolicyChooser
from kvstrata.router.state_file import Keeping, StateFile
from kvstrata.routing.cost import Profile, Work
from kvstrata.routing.seconds import Seconds
from tests.unit.router.router_lab import ask, fleet, get, run, until
from tests.unit.router.stub_engine import StubEngine


def taught(seconds: float = 9.0) -> PolicyChooser:
    """A chooser that has learned how slow replica `a` is."""
    policy = Seconds(Profile())
    for number in range(40):
        policy.learner.learn("a", Work(4000, 0, 0, 0, 0.0, 0.0), seconds, float(number))
    return PolicyChooser(policy)


def rates(chooser: PolicyChooser) -> tuple[float, ...]:
    policy = chooser._policy
    assert isinstance(policy, Seconds)
    return policy.learner.rates("a")


def test_a_file_is_replaced_in_one_step_and_is_the_owners(tmp_path: Path) -> None:
    path = tmp_path / "learned"
    path.write_bytes(b"before")
    path.chmod(0o644)
    file = StateFile(path)
    file.store(b"after")
    assert file.load() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["learned"]


def test_nothing_is_written_when_nothing_is_new(tmp_path: Path) -> None:
    path = tmp_path / "learned"
    file = StateFile(path)
    file.store(b"")
    assert not path.exists()
    file.store(b"one")
    before = path.stat().st_ino
    file.store(b"one")
    assert path.stat().st_ino == before
    file.store(b"two")
    assert path.read_bytes() == b"two"


def test_what_cannot_be_written_is_told_once_and_leaves_the_old(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = StateFile(tmp_path / "nowhere" / "learned")
    for number in range(3):
        file.store(b"%d" % number)
    assert len(caplog.records) == 1 and "cannot be kept" in caplog.text


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "unreadable"])
def test_what_cannot_be_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / "learned"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.symlink_to(path)
    assert StateFile(path).load() == b""
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING


def test_a_chooser_goes_on_where_another_ended(tmp_path: Path) -> None:
    path = tmp_path / "learned"
    old = taught()

    async def keep(chooser: PolicyChooser) -> None:
        keeping = Keeping(StateFile(path), chooser)
        await keeping.begin()
        await keeping.end()

    run(keep(old))
    new = PolicyChooser(Seconds(Profile()))
    fresh = rates(new)
    run(keep(new))
    assert rates(new) == pytest.approx(rates(old), rel=1e-3)
    assert rates(new) != pytest.approx(fresh, rel=0.1)


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"[]", b'{"version":0,"terms":[],"fleet":{},"replicas":{}}', b"\xff" * 99],
)
def test_a_damaged_or_old_file_is_a_warning_and_a_fresh_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "learned"
    path.write_bytes(content)
    chooser = PolicyChooser(Seconds(Profile()))
    fresh = rates(chooser)

    async def go() -> None:
        keeping = Keeping(StateFile(path), chooser)
        await keeping.begin()
        assert rates(chooser) == fresh
        await keeping.end()

    run(go())
    assert caplog.records or not content
    assert json.loads(path.read_bytes())["version"] > 0  # and the file is of use again


def test_it_is_written_now_and_then(tmp_path: Path) -> None:
    path = tmp_path / "learned"

    async def go() -> None:
        keeping = Keeping(StateFile(path), taught(), every=0.02)
        await keeping.begin()
        await until(path.exists)
        await keeping.end()

    run(go())


@pytest.mark.parametrize("policy", ["seconds", "least-loaded"])
def test_a_router_keeps_it(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "learned"
    settings = {"policy": policy, "state": str(path)}
    if policy == "seconds":
        path.write_bytes(taught().save(50.0))

    async def go() -> None:
        async with fleet(StubEngine("a"), **settings) as router:
            assert (await ask(router, {"model": "tiny", "prompt": [1, 2, 3]})).status == 200
            if policy == "seconds":
                assert rates(router.application.chooser) == pytest.approx(rates(taught()), rel=1e-3)
                shown = (await get(router, "/admin/policy")).json["replicas"]["a"]
                assert shown["prefill_tokens_per_s"] == pytest.approx(
                    1 / rates(taught())[1], rel=1e-3
                )
        assert path.exists() is (policy == "seconds")

    run(go())
