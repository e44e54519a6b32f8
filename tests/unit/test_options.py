"""Options: sizes, wrong values, unknown keys, and the table in the documents."""

import dataclasses
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.tenants import TenantTerms, Terms
from kvstrata.cli.options import markdown
from kvstrata.errors import ConfigError
from kvstrata.options import ENGINE_KEYS, Capacity, Options, option_table
from kvstrata.sizes import format_size, parse_size

FACTORS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
DOCUMENT = Path(__file__).parents[2] / "docs" / "options.md"
NAMES = [row.name for row in option_table()]


# --- sizes ---------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(size) == size
    assert parse_size(str(size)) == size


@given(
    st.integers(0, 10**6),
    st.integers(0, 999),
    st.sampled_from(sorted(FACTORS)),
    st.sampled_from(["", " "]),
    st.sampled_from([str, str.upper, str.lower]),
)
def test_a_number_and_a_unit_are_their_product(
    whole: int, thousandths: int, unit: str, gap: str, case: Any
) -> None:
    text = case(f"{whole}.{thousandths:03d}{gap}{unit}")
    expected = (Fraction(whole) + Fraction(thousandths, 1000)) * FACTORS[unit]
    assert parse_size(text) == int(expected)


@given(st.integers(0, 2**50))
def test_what_is_shown_reads_back_to_four_digits(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size / 2000 + 1


@given(st.integers(1, 999), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]))
def test_a_whole_number_of_binary_units_is_shown_and_read_exactly(count: int, unit: str) -> None:
    size = count * FACTORS[unit]
    assert format_size(size) == f"{count} {unit}"
    assert parse_size(format_size(size)) == size


@given(
    st.one_of(
        st.text(max_size=12),
        st.from_regex(r"[0-9.]{0,6} ?[kmgtib]{0,4}", fullmatch=True),
        st.integers(),
        st.floats(),
        st.booleans(),
        st.none(),
        st.lists(st.integers(), max_size=2),
    )
)
def test_any_value_is_a_size_or_an_error_that_shows_what_is_allowed(value: Any) -> None:
    try:
        size = parse_size(value)
    except ConfigError as error:
        message = str(error)
    else:
        assert isinstance(size, int)
        assert not isinstance(value, bool)
        assert 0 <= size < 2**63
        return
    assert '"8GiB"' in message


@pytest.mark.parametrize(
    "value",
    [
        *("64k", "8G", "1.5m", "8 GBB", "GiB", "-1", "1e9", "0x10", "1,5GB", "8  GiB", "", b"8GiB"),
        "\N{ARABIC-INDIC DIGIT ONE}GB",
        *(True, None, 1.5, -1, 2**63, "9000000TiB", float("nan"), float("inf"), {"size": 1}),
    ],
)
def test_a_size_that_is_none(value: Any) -> None:
    with pytest.raises(ConfigError, match="8GiB"):
        parse_size(value)


def test_a_letter_alone_is_refused_with_both_readings() -> None:
    with pytest.raises(ConfigError, match=r'"64KiB" \(1024s\) or "64KB" \(1000s\)'):
        parse_size("64k")


def test_json_may_write_a_whole_number_with_an_exponent() -> None:
    assert parse_size(1e9) == 10**9


# --- parsing -------------------------------------------------------------------------------


def test_defaults() -> None:
    assert Options.parse({"path": "/mnt/kv"}) == Options(
        path="/mnt/kv",
        memory=None,
        io_threads=0,
        read_deadline=10.0,
        store_queue=256 * 2**20,
        fsync=False,
        read_only=False,
        touch=True,
        direct="never",
        label="",
        shm_dir="/dev/shm",
        eviction="boundary",
        admission="always",
    )


def test_every_option_is_read() -> None:
    given_values: dict[str, Any] = {
        "path": "/mnt/kv",
        "memory": "8GiB",
        "io_threads": 3,
        "read_deadline": 2,
        "store_queue": "1 GB",
        "segment": "2 MB",
        "fsync": True,
        "read_only": "true",
        "touch": "false",
        "direct": "always",
        "label": "blue ☂",
        "shm_dir": "/run/shm",
        "eviction": "lru",
        "admission": "measured",
        "announce": False,
        "capacity": "75%",
        "keep_free": "10GiB",
        "ttl": "7d",
        "floor": "1GiB",
        "weight": 2,
        "unused_after": "12h",
        "tenants": {"default": {"quota": "1GiB"}, "00" * 16: {"weight": 2}},
        "seal": "encrypt",
        "keys": "/etc/kvstrata/keys",
        "shared_with": "group",
        "world_writable": True,
    }
    assert list(given_values) == NAMES
    expected = {**given_values, "memory": 2**33, "store_queue": 10**9}
    expected |= {"segment": 2 * 10**6, "capacity": Capacity(share=0.75), "keep_free": 10 << 30}
    expected |= {"ttl": 7 * 86400.0, "floor": 1 << 30, "weight": 2.0, "unused_after": 43200.0}
    expected["tenants"] = TenantTerms(Terms(1 << 30), {bytes(16): Terms(None, 2.0)})
    expected |= {"read_deadline": 2.0, "read_only": True, "touch": False}
    assert dataclasses.asdict(Options.parse(given_values)) == expected


def test_a_capacity_is_a_size_or_a_share() -> None:
    assert Options.parse({"path": "/kv", "capacity": "1GiB"}).capacity == Capacity(nbytes=1 << 30)
    assert Options.parse({"path": "/kv", "capacity": " 12.5 % "}).capacity == Capacity(share=0.125)


def test_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert Options.parse({"path": "~/kv"}).path == "/home/someone/kv"


def test_a_path_object_is_a_path() -> None:
    assert Options.parse({"path": Path("/mnt/kv")}).path == "/mnt/kv"


def test_null_counts_as_not_given() -> None:
    options = Options.parse(dict.fromkeys(NAMES) | {"memory": 1})
    assert options == Options(memory=1)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().path = "/elsewhere"  # type: ignore[misc]


def test_keys_of_the_engine_are_accepted_and_ignored() -> None:
    keys: dict[str, Any] = dict.fromkeys(ENGINE_KEYS, object())
    assert Options.parse({**keys, "memory": 1}) == Options(memory=1)


@pytest.mark.parametrize("value", [True, False, None])
def test_the_canonical_layout_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="'canonical_layout' is not supported"):
        Options.parse({"path": "/mnt/kv", "canonical_layout": value})


@pytest.mark.parametrize("config", [{}, {"fsync": True}, {"path": None, "memory": None}])
def test_neither_path_nor_memory_names_both_remedies(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'path' .*'memory' "):
        Options.parse(config)


WRONG_VALUES: list[tuple[str, str, list[Any]]] = [
    (
        "path",
        "absolute directory",
        ["", "kv", "./kv", 7, True, b"/kv", "/kv\0", "~nobody-of-that/"],
    ),
    ("memory", "greater than 0", [0, "0", "0GiB", "0.1B", -1, "much", True]),
    ("io_threads", "from 0 to 256", [-1, 257, 1.5, "4", True]),
    ("read_deadline", "greater than 0, at most 86400", [0, -1, "10", True, 86401, 2**70]),
    ("read_deadline", "greater than 0, at most 86400", [float("nan"), float("inf")]),
    ("store_queue", "greater than 0", [0, "64k", False, []]),
    ("segment", "a size", [-1, "4m", True, []]),
    ("fsync", "true or false", [1, 0, "yes", "True", "", []]),
    ("read_only", "true or false", [1, 0, "no", "FALSE", 1.0]),
    ("touch", "true or false", [1, 0, "yes", {}]),
    ("direct", '"auto" or "never" or "always"', ["on", True, 1, "AUTO", []]),
    ("label", "text of at most 200", [1, True, "x" * 201, "\ud800"]),
    ("shm_dir", "absolute directory", ["shm", "", 1]),
    ("eviction", '"boundary" or "lru" or "arc"', ["fifo", "LRU", 1, [], True]),
    (
        "admission",
        '"always" or "measured" or "second-sight"',
        ["second_sight", "ALWAYS", 1, [], True],
    ),
    ("announce", "true or false", [1, 0, "yes", "off"]),
    ("capacity", 'such as "80%"', ["0%", "101%", "-5%", 0, "0", True, "much", "5 percent", "1e1%"]),
    ("keep_free", "a size", [-1, "10%", True, "some"]),
    ("ttl", "a number and a unit", [0, "0s", "7", 7, "-1d", "1w", True]),
    ("floor", "a size", [-1, "10%", True, "some"]),
    ("weight", "a number from 0.001 to 1000", [0, -1, "2", True, 1001, float("nan")]),
    ("unused_after", "a number and a unit", [0, "0d", 30, "month"]),
    (
        "tenants",
        '{"default": {"quota": "10GiB", "weight": 1}',
        [
            *("all", 1, True, [], {}, {"default": 1}, {"default": {"bytes": 1}}),
            *({"default": {"quota": "0B"}}, {"default": {"weight": 0}}, {"salt": {"weight": 1}}),
        ],
    ),
    ("seal", '"none" or "authenticate" or "encrypt"', ["yes", True, "aes", 1]),
    ("keys", "an absolute path", ["keys", "", 1]),
    ("shared_with", '"user" or "group"', ["all", "others", 1]),
    ("world_writable", "true or false", [1, "yes"]),
]
WRONG = [(name, value, allowed) for name, allowed, values in WRONG_VALUES for value in values]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_a_wrong_value_names_the_option_what_is_allowed_and_what_was_given(
    name: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Options.parse({"path": "/mnt/kv", "memory": 1, name: value})
    message = str(caught.value)
    assert f"'{name}'" in message
    assert allowed in message
    assert repr(value)[:20] in message
    assert "\n" not in message


def test_each_option_that_can_be_wrong_is_tried() -> None:
    assert {name for name, _, _ in WRONG} == set(NAMES)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("pth", "path"),
        ("Memory", "memory"),
        ("memory_size", "memory"),
        ("io_thread", "io_threads"),
        ("read_deadlin_s", "read_deadline"),
        ("readonly", "read_only"),
        ("eviction_policy", "eviction"),
        ("block_per_chunk", "blocks_per_chunk"),
        ("cpu_bytes_to_use", "memory"),
        ("secondary_tiers", "path"),
        ("shared_storage_path", "path"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}'; did you mean '{nearest}'"):
        Options.parse({"path": "/mnt/kv", key: 1})


def test_an_unknown_key_unlike_any_lists_all() -> None:
    with pytest.raises(ConfigError) as caught:
        Options.parse({"path": "/mnt/kv", "xyzzy": 1})
    assert all(name in str(caught.value) for name in [*NAMES, *ENGINE_KEYS])


@given(st.text(max_size=20), st.none() | st.integers() | st.text(max_size=5))
def test_no_other_key_passes(key: str, value: Any) -> None:
    if key in NAMES or key in ENGINE_KEYS:
        return
    with pytest.raises(ConfigError, match=r"unknown option|not supported"):
        Options.parse({"path": "/mnt/kv", key: value})


# --- the table -----------------------------------------------------------------------------


def test_the_table_says_what_the_fields_say() -> None:
    fields = {field.name: field for field in dataclasses.fields(Options)}
    assert list(fields) == NAMES
    for row in option_table():
        assert all(row)
        assert row.allowed == fields[row.name].metadata["allowed"]
        assert row.doc == fields[row.name].metadata["doc"]


def test_the_default_in_the_table_parses_to_the_default() -> None:
    for row in option_table():
        default = getattr(Options(), row.name)
        if default is not None:
            value = json.loads(row.default)
            parsed = Options.parse({"path": "/mnt/kv", row.name: value})
            assert getattr(parsed, row.name) == default


def test_the_document_holds_the_table() -> None:
    text = DOCUMENT.read_text()
    section = re.search(r"<!-- options: begin.*?-->\n(.*?)<!-- options: end -->", text, re.DOTALL)
    assert section is not None
    assert section[1].strip() == markdown().strip(), "paste `kvstrata options --markdown` there"
