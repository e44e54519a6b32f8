"""Keys from the command line: made, added, used by `verify`, and never shown by anything else."""

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.keyring import Keyring
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.sealing import SealKind
from kvstrata.cli.main import app
from kvstrata.errors import ConfigError
from kvstrata.fileio.key_file import KEYS_VARIABLE, find_keys, parse_keys
from kvstrata.tiers.filesystem import FilesystemTier

GEOMETRY = GroupGeometry(0, GroupKind.FULL, 16, 2, (32,))
KEYS = [make_key(bytes([number]) * 32, 0) for number in range(9)]


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_keys_are_made_and_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    before = os.umask(0)
    try:
        assert run("keygen", path).exit_code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (first,) = find_keys(str(path), {})
    path.chmod(0o640)
    done = run("keygen", path)
    assert done.exit_code == 0 and not re.search("[0-9a-f]{17}", done.stdout)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert run("keygen", path, "--first").exit_code == 0
    newest, still_first, second = find_keys(str(path), {})
    assert still_first == first and len({newest, first, second}) == 3
    ids = re.findall("key ([0-9a-f]{16}) made", path.read_text())
    assert ids == Keyring([newest, first, second]).key_ids
    assert list(tmp_path.iterdir()) == [path]


def test_a_printed_key_is_one_for_the_environment() -> None:
    printed = run("keygen").stdout
    (key,) = find_keys(None, {KEYS_VARIABLE: printed})
    assert key.hex() in printed
    both = find_keys(None, {KEYS_VARIABLE: f"{'01' * 32}, {key.hex()}"})
    assert both == [b"\1" * 32, key]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no key"),
        ("# only a note\n", "holds no key"),
        ("ab" * 31, "line 1: a key is 64 hexadecimal digits; this has 62 characters"),
        ("ab" * 32 + "\n" + "zz" * 32, "line 2: a key is 64"),
        ("ab" * 32 + "\n\n" + "AB" * 32, "line 3: this key stands there already"),
    ],
)
def test_what_is_no_key_is_told_without_showing_it(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        parse_keys(text, "the file")
    assert "abab" not in str(caught.value) and "zz" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o601])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    path.write_text("ab" * 32)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod o="):
        find_keys(str(path), {})
    path.chmod(0o440)
    assert find_keys(str(path), {}) == [b"\xab" * 32]


def test_what_is_no_file_of_keys(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "binary").write_bytes(b"\xff" * 32)
    (tmp_path / "binary").chmod(0o600)
    for name, told in [("pipe", "not a file"), ("binary", "no.*text"), ("none", "No such file")]:
        with pytest.raises(ConfigError, match=told):
            find_keys(str(tmp_path / name), {})
    with pytest.raises(ConfigError, match="kvstrata keygen"):
        find_keys(None, {})


def test_sealed_records_are_checked_with_their_keys(tmp_path: Path) -> None:
    files, other = tmp_path / "keys", tmp_path / "other"
    for path in (files, other):
        run("keygen", path)
    root = tmp_path / "root"
    keyring = Keyring(find_keys(str(files), {}), SealKind.ENCRYPTED)
    tier = FilesystemTier(root, Namespace("m", {"seal": 1}), {0: GEOMETRY}, keyring=keyring)
    tier.prepare()
    tier.write(KEYS[0], memoryview(bytes(64)))
    tier.write_many([(key, memoryview(key * 2)[:64], 0) for key in KEYS[1:]])

    without = run("verify", root)
    assert without.exit_code == 0 and "9 records are sealed" in without.stdout
    assert "9 records are sealed" in run("verify", root, "--keys", other).stdout
    known = run("verify", root, "--keys", files)
    assert (
        known.exit_code == 0
        and "records are sealed" not in known.stdout
        and "all good" in known.stdout
    )
    for key in (KEYS[0], KEYS[3]):
        path = tier.directory / relative_path(key)
        content = bytearray(path.read_bytes())
        content[4096 + 4096 * (key == KEYS[3]) * 2] ^= 1
        path.write_bytes(content)
    found = run("verify", root, "--keys", files, "--remove")
    assert found.exit_code == 1 and "checksum" in found.stdout
    assert "all good" in run("verify", root, "--keys", files).stdout
    assert run("inspect", root).exit_code == 0 and run("usage", root, "--exact").exit_code == 0
