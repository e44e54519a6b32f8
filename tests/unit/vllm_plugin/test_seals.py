"""What the options 'seal' and 'keys' lead to: a keyring, or a message with a remedy."""

import sys
from pathlib import Path

import pytest

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.sealing import SealKind
from kvstrata.clock import ManualClock
from kvstrata.errors import BadReason, ConfigError
from kvstrata.fileio.key_file import KEYS_VARIABLE
from kvstrata.metrics import Metrics
from kvstrata.options import Options
from kvstrata.tiers.tier import Bad, Loaded, Stored
from kvstrata.vllm_plugin.seals import open_keyring
from kvstrata.vllm_plugin.storage import open_storage

KEY = "ab" * 32
GEOMETRY = GroupGeometry(0, GroupKind.FULL, 16, 2, (32,))
CHUNK = make_key(bytes(32), 0)


def options(**given: object) -> Options:
    return Options.parse({"memory": "1GiB", **given})


def test_nothing_is_sealed_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    assert open_keyring(options()) is None


@pytest.mark.parametrize(
    ("seal", "kind"),
    [("authenticate", SealKind.AUTHENTICATED), ("encrypt", SealKind.ENCRYPTED)],
)
def test_keys_come_from_the_file_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seal: str, kind: SealKind
) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    path = tmp_path / "keys"
    path.write_text("cd" * 32)
    path.chmod(0o600)
    of_environment = open_keyring(options(seal=seal))
    of_file = open_keyring(options(seal=seal, keys=str(path)))
    assert of_environment is not None and of_file is not None
    assert of_environment.kind is of_file.kind is kind
    assert of_environment.key_ids != of_file.key_ids


def test_what_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="kvstrata keygen FILE"):
        open_keyring(options(seal="encrypt"))
    with pytest.raises(ConfigError, match="give 'seal' too"):
        open_keyring(options(keys=str(tmp_path / "keys")))
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    monkeypatch.setitem(sys.modules, "kvstrata.chunks.keyring", None)
    with pytest.raises(ConfigError, match="needs the package cryptography"):
        open_keyring(options(seal="encrypt"))


def test_the_options_reach_the_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    payload, into = memoryview(bytes(range(64))), memoryview(bytearray(64))
    namespace = Namespace("m", {})  # one for all, as no two engines have it: only the seals differ
    tiers = {
        seal: open_storage(
            options(path=str(tmp_path), seal=seal, shared_with="group"),
            namespace,
            {0: GEOMETRY},
            ManualClock(),
            Metrics(),
        )
        for seal in ("encrypt", "authenticate", "none")
    }
    encrypting = tiers["encrypt"]
    assert encrypting is not None and encrypting.write(CHUNK, payload) == Stored(64)
    assert encrypting.read(CHUNK, into) == Loaded(64) and into == payload
    files = list(tmp_path.rglob("*.kv"))
    assert bytes(payload) not in files[0].read_bytes() and files[0].stat().st_mode & 0o777 == 0o660
    for other, reason in (("authenticate", BadReason.VERSION), ("none", BadReason.SEALED)):
        tier = tiers[other]
        assert tier is not None
        outcome = tier.read(CHUNK, into)
        assert isinstance(outcome, Bad) and outcome.reason is reason
    for tier in tiers.values():
        assert tier is not None
        tier.close()
