"""The fingerprint of weights: what it sees, and what it costs."""

import os
from pathlib import Path

import pytest

from kvstrata.vllm_plugin import weights as module
from kvstrata.vllm_plugin.weights import (
    MAX_HEADER_BYTES,
    SAMPLE_BYTES,
    SAMPLES,
    model_place,
    weights_fingerprint,
)

SIZE = 8 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(64))
    with path.open("r+b") as out:
        out.write((1 << 20).to_bytes(8, "little"))  # the header's length
        out.truncate(SIZE)
    return path


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as out:
        out.seek(offset)
        byte = out.read(1)[0]
        out.seek(offset)
        out.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("piece", range(SAMPLES))
def test_every_piece_is_seen_from_its_first_byte_to_its_last(file: Path, piece: int) -> None:
    start = (SIZE - SAMPLE_BYTES) * piece // (SAMPLES - 1)
    known = weights_fingerprint(file.parent)
    for offset in (start, start + SAMPLE_BYTES - 1):
        flip(file, offset)
        assert weights_fingerprint(file.parent) != known
        flip(file, offset)
    assert weights_fingerprint(file.parent) == known


def test_the_whole_header_is_seen_and_nothing_far_behind_it(file: Path) -> None:
    known = weights_fingerprint(file.parent)
    flip(file, 1 << 20)  # between two pieces, but in the header
    assert weights_fingerprint(file.parent) != known
    flip(file, 1 << 20)
    flip(file, 2 << 20)  # between two pieces: the price of sampling, which the docstring states
    assert weights_fingerprint(file.parent) == known


def test_a_header_that_lies_about_its_length_costs_no_more_than_the_bound(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file.open("r+b") as out:
        out.write(b"\xff" * 8)
        out.truncate(1 << 34)  # sparse
    read = []

    def pread(fd: int, count: int, offset: int) -> bytes:
        read.append(count)
        return os.pread(fd, count, offset)

    monkeypatch.setattr(module, "os", type("Os", (), {"pread": staticmethod(pread)}))
    assert weights_fingerprint(file.parent) is not None
    assert sum(read) <= MAX_HEADER_BYTES + SAMPLES * SAMPLE_BYTES + 8


def test_names_sizes_and_order(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "b.safetensors").write_bytes(b"2")
    known = weights_fingerprint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert weights_fingerprint(tmp_path) == known
    (tmp_path / "a.safetensors").rename(tmp_path / "c.safetensors")
    assert weights_fingerprint(tmp_path) != known


def test_nothing_to_read(tmp_path: Path) -> None:
    assert weights_fingerprint(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert weights_fingerprint(tmp_path) is None


def test_one_file_is_a_model_too(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF1")
    (tmp_path / "other.gguf").write_bytes(b"GGUF2")
    assert model_place(str(path), None) == path
    known = weights_fingerprint(path)
    (tmp_path / "other.gguf").write_bytes(b"GGUF3")
    assert weights_fingerprint(path) == known
    path.write_bytes(b"GGUF4")
    assert weights_fingerprint(path) != known


@pytest.mark.parametrize("name", ["nobody/no-such-model", "s3://bucket/a/b/c", "/no/such/place"])
def test_a_model_that_is_not_here(name: str) -> None:
    assert model_place(name, None) is None
