"""A bad, missing, slow or full directory costs a recompute, never a wrong token, a crash or a hang."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvstrata.chunks.key import make_key, relative_path
from kvstrata.testing.damage import damage, forge
from kvstrata.tiers.catalog import check_record, iter_namespaces, iter_records
from lab.fuzz.heads import repair
from lab.models import prompt_ids
from tests.e2e.engine import Engine, EngineError

pytestmark = pytest.mark.engine

CONTENT = {
    "empty": "truncated",
    "truncated": "truncated",
    "bit_flip": "checksum",
    "header_flip": "header",
    "foreign": "foreign",
    "older_version": "version",
    "other_namespace": "namespace",
    "swapped_key": "key",
}
"""Kinds of damage and the reason that each is counted under."""
KEPT = {"older_version", "other_namespace"}
"""Not truly bad: another engine may use them."""
FOREIGN = ["directory", "fifo", "socket", "link", "link_loop"]
"""What is no file of ours under a chunk's name; opening a pipe must wait for nobody."""
PLACES = ["vanished", "denied", "lying", *FOREIGN, "forged"]
TOKENS = 700
BLOCKS = TOKENS // 128
VICTIM = 2
"""The block that is damaged; those before it stay usable."""


def record_paths(root: Path) -> list[Path]:
    return [
        file.path
        for namespace in iter_namespaces(root)
        for file in iter_records(namespace.path)
        if not file.temporary
    ]


def path_of_block(root: Path, hashes: list[str], block: int) -> Path:
    """The file of a prompt's block in group 0 (llama has no other)."""
    (namespace,) = iter_namespaces(root)
    return namespace.path / relative_path(make_key(bytes.fromhex(hashes[block]), 0))


def spoil(path: Path, kind: str) -> None:
    if kind in CONTENT:
        damage(path, kind)
    elif kind == "forged":
        forge(path, seed=1)
    elif kind == "denied":
        path.chmod(0)
    elif kind == "lying":
        lie(path)
    else:
        aside = path.parents[4] / "outside" / path.name
        path.rename(aside)
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
                one.bind(path.name)
        elif kind == "link":
            path.symlink_to(aside)  # the very record, whole
        elif kind == "link_loop":
            path.symlink_to(path)


def lie(path: Path) -> None:
    """A header with a right checksum that speaks of blocks of a tebibyte, in a file that is as long."""
    content = bytearray(path.read_bytes())
    content[48:56] = (1 << 40).to_bytes(8, "little")
    repair(content)
    path.write_bytes(content)
    os.truncate(path, 2 << 40)


def plant(root: Path) -> None:
    """Spoil the small files of a root, and put beside the chunks what is not ours."""
    (namespace,) = iter_namespaces(root)
    (namespace.path / "namespace.json").unlink()
    os.mkfifo(namespace.path / "namespace.json")
    (namespace.path / "terms.json").write_bytes(b"[" * 100_000)
    os.mkfifo(root / "usage.json")
    (root / ".kvstrata-place").unlink(missing_ok=True)
    (root / ".kvstrata-place").symlink_to(".kvstrata-place")
    (root / f"linked-{'0' * 32}").symlink_to(root.parent / "outside")
    for first in namespace.path.glob("[0-9a-f][0-9a-f]"):
        for number in range(200):
            (first / f"foreign-{number}").touch()
        (first / "00").mkdir(exist_ok=True)
        (first / "00" / ("0" * 32 + ".g0.kv")).symlink_to("/etc/passwd")


def everything(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_bad_file_is_a_miss_with_the_right_tokens(tmp_path: Path, start) -> None:
    root = tmp_path / "kv"
    kinds = [*CONTENT, *PLACES]
    prompts = {kind: prompt_ids(TOKENS, seed=i) for i, kind in enumerate(kinds)}
    # A file for each chunk: what is wrong with a file that several share is wrong with all of them.
    alone = {"path": str(root), "memory": "96MiB", "segment": 0}
    with start("llama", alone) as writer:
        cold = {kind: writer.ask(prompt)[0] for kind, prompt in prompts.items()}
        hashes = {kind: writer.do("hashes", prompt=p) for kind, p in prompts.items()}
    victims = {kind: path_of_block(root, hashes[kind], VICTIM) for kind in kinds}
    outside = tmp_path / "outside"
    outside.mkdir()
    for kind, path in victims.items():
        spoil(path, kind)
    plant(root)
    before = everything(outside)

    # Its keeper goes through the directories too. A bound would take the lie about a size for the truth.
    options = {"path": str(root), "memory": "96MiB", "read_deadline": 2, "ttl": "30d"}
    with start("llama", options, bound=True) as reader:
        answers = {kind: reader.ask(prompts[kind])[0] for kind in kinds}
        metrics = reader.do("metrics")

    forged = answers.pop("forged")
    assert forged["cached"] == BLOCKS * 128
    assert forged["tokens"] != cold["forged"]["tokens"] or any(
        abs(a - b) > 0.005
        for a, b in zip(forged["logprobs"], cold["forged"]["logprobs"], strict=True)
    ), "other bytes with valid checksums change nothing: this test could not fail"
    for kind, answer in answers.items():
        assert answer["tokens"] == cold[kind]["tokens"], kind
        assert answer["cached"] == VICTIM * 128, kind
    for kind, reason in CONTENT.items():
        assert metrics[f"bad_records{{reason={reason}}}"] >= 1, kind
    assert metrics["bad_records{reason=permission}"] >= 1
    assert metrics["bad_records{reason=foreign}"] >= 1 + len(FOREIGN)
    assert metrics["bad_records{reason=geometry}"] >= 1
    assert metrics["read_deadlines{}"] == 0
    assert everything(outside) == before
    # What can never be used is gone (the recompute may have stored it anew); the rest is left alone.
    for kind in CONTENT:
        if kind not in KEPT and victims[kind].exists():
            check_record(victims[kind])


def store_again(engine: Engine, root: Path) -> int:
    """Serve new prompts until storage, which was set aside, is written again; files that are there then."""
    for seed in range(100, 120):
        engine.ask(prompt_ids(300, seed=seed))
        assert engine.do("idle")
        if root.is_dir() and (found := len(record_paths(root))):
            return found
        time.sleep(0.5)
    raise AssertionError("storage was not taken back")


def test_a_full_disk_and_a_deleted_directory_cost_only_stores(tmp_path: Path, start) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        # What a prompt stores is written together, and counts as one failure of the four that set aside.
        prompts = [prompt_ids(TOKENS, seed=i) for i in range(10)]
        options = {"path": str(disk / "kv"), "memory": "96MiB"}
        with start("llama", options) as engine:
            cold = [engine.ask(prompt)[0] for prompt in prompts]
            assert engine.do("idle")
            metrics = engine.do("metrics")
            assert metrics["writes_dropped{reason=ENOSPC}"] >= 4
            assert metrics["writes_dropped{reason=set_aside}"] >= 1
            assert metrics["set_aside{operation=write,tier=filesystem}"] == 1
            assert [check_record(path) for path in record_paths(disk / "kv")]
            assert not list(disk.rglob(".tmp-*"))
            engine.do("reset_device")
            assert [engine.ask(p)[0]["tokens"] for p in prompts] == [a["tokens"] for a in cold]

            shutil.rmtree(disk / "kv")
            engine.do("reset_device")
            assert engine.ask(prompts[0])[0]["tokens"] == cold[0]["tokens"]
            taken_back = store_again(engine, disk / "kv")
            assert engine.do("metrics")["set_aside{operation=write,tier=filesystem}"] == 0
            fresh = prompt_ids(300, seed=50)
            engine.ask(fresh)
            assert engine.do("idle")
            assert len(record_paths(disk / "kv")) == taken_back + 2
        with start("llama", options) as restarted:
            assert restarted.ask(fresh)[0]["cached"] == 256
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_directory_that_cannot_be_written_is_read(tmp_path: Path, start) -> None:
    root = tmp_path / "kv"
    prompt, other = prompt_ids(TOKENS, seed=1), prompt_ids(TOKENS, seed=2)
    with start("llama") as writer:
        cold = writer.ask(prompt)[0]
    for directory in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        directory.chmod(0o555)
    before = sorted(root.rglob("*"))
    with start("llama", bound=True) as reader:
        answer = reader.ask(prompt)[0]
        reader.ask(other)
        assert reader.do("idle")
        assert reader.do("metrics")["writes_dropped{reason=read_only}"] == BLOCKS
    assert answer["cached"] == BLOCKS * 128 and answer["tokens"] == cold["tokens"]
    assert sorted(root.rglob("*")) == before


def test_a_path_that_cannot_be_used_is_named_at_the_start(tmp_path: Path, start) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(EngineError, match=r"option 'path' cannot be used: .*file"):
        start("llama", {"path": str(tmp_path / "file"), "memory": "64MiB"})


def test_after_sigkill_in_the_middle_of_writes_nothing_wrong_is_read(tmp_path: Path, start) -> None:
    root = tmp_path / "kv"
    delays = random.Random(1)
    prompts = [prompt_ids(3000, seed=i) for i in range(2)]
    for prompt in prompts:
        engine = start("llama", {"path": str(root), "memory": "96MiB", "fsync": True})
        before = len(record_paths(root)) if root.exists() else 0
        engine.send("ask", prompts=[prompt], max_tokens=16)
        deadline = time.monotonic() + 60
        while len(record_paths(root)) < before + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delays.random() * 0.1)
        engine.kill()
    paths = record_paths(root)
    assert paths
    for path in paths:
        check_record(path)
    run = subprocess.run(
        [sys.executable, "-m", "kvstrata.cli.main", "verify", str(root)],
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    with start("llama", {"memory": "96MiB"}) as plain:
        cold = [plain.ask(prompt)[0] for prompt in prompts]
    with start("llama") as reader:
        for prompt, reference in zip(prompts, cold, strict=True):
            answer = reader.ask(prompt)[0]
            assert answer["cached"] > 0 and answer["tokens"] == reference["tokens"]
    assert not list(Path("/dev/shm").glob("kvstrata-*"))
