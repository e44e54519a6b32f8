"""A salt keeps tenants apart, in every tier and on every replica; their files say whose they are."""

from pathlib import Path

import pytest

from kvstrata.chunks.key import parse_file_name
from kvstrata.chunks.record import NO_TENANT
from kvstrata.chunks.tenants import tenant_mark, tenant_name
from kvstrata.tiers.records import tenant_of
from lab.models import prompt_ids

pytestmark = pytest.mark.engine

MODEL = "gemma3-1to1"
PROMPT = prompt_ids(700, seed=3)
SERVED = 640
"""Tokens of it in whole blocks of 128."""
TIERS = ("device", "memory", "filesystem")


def asked(engine, salt: str | None) -> tuple[int, dict[str, float]]:
    """Cached tokens by vLLM's account, and by tier by ours."""
    before = engine.do("metrics")
    cached = engine.do("ask", prompts=[PROMPT], salt=salt)[0]["cached"]
    after = engine.do("metrics")
    names = {tier: f"tokens{{tier={tier}}}" for tier in TIERS}
    by_tier = {tier: after.get(n, 0.0) - before.get(n, 0.0) for tier, n in names.items()}
    return cached, {tier: count for tier, count in by_tier.items() if count}


def marks(root: Path) -> dict[bytes, int]:
    """Chunks in files by the tenant's mark, and the salt nowhere."""
    found: dict[bytes, int] = {}
    for path in root.rglob("*.kv"):
        key = parse_file_name(path.name)
        assert key is not None
        data = path.read_bytes()
        assert b"salt of tenant" not in data
        with path.open("rb") as file:
            mark = tenant_of(file.fileno(), key)
        found[mark] = found.get(mark, 0) + 1
    return found


def test_a_salt_keeps_tenants_apart_everywhere(tmp_path, start) -> None:
    a, b = "salt of tenant A", "salt of tenant B"
    with start(MODEL) as first:
        assert asked(first, a) == (0, {})
        assert asked(first, a) == (SERVED, {"device": SERVED})
        assert first.do("idle")
        # B and nobody find nothing of A's, whatever tier holds it: device, then memory, then files.
        for stranger in (b, None, "salt of tenant C"):
            assert asked(first, stranger) == (0, {})
        first.do("reset_device")
        assert asked(first, "salt of tenant D") == (0, {})
        assert asked(first, a) == (SERVED, {"memory": SERVED})
        first.do("reset_device")
        first.do("forget_memory")
        assert asked(first, "salt of tenant E") == (0, {})
        assert asked(first, a) == (SERVED, {"filesystem": SERVED})
        assert first.do("idle")
        fingerprint = bytes.fromhex(first.do("namespace").rpartition("-")[2])
    with start(MODEL) as second:  # another replica on the same directory
        assert asked(second, "salt of tenant F") == (0, {})
        assert asked(second, a) == (SERVED, {"filesystem": SERVED})
        assert asked(second, b) == (SERVED, {"filesystem": SERVED})
        assert asked(second, None) == (SERVED, {"filesystem": SERVED})
        assert second.do("idle")

    held = marks(tmp_path / "kv")
    expected = {tenant_mark(tenant_name(f"salt of tenant {one}"), fingerprint) for one in "ABCDEF"}
    assert set(held) == {NO_TENANT, *expected}
    assert len(set(held.values())) == 1, "everyone has as many chunks as everyone else"
