"""Settings, access, health and the line, without sockets."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.errors import ConfigError
from kvstrata.router.asking import ask, with_load_cap
from kvstrata.router.config import ReplicaConfig, RouterConfig, parse_replica, read_config
from kvstrata.router.headers import joined, to_client, to_engine
from kvstrata.router.health import EngineLoad, Health, State, read_load
from kvstrata.router.inbound import Request
from kvstrata.router.line import Line
from kvstrata.router.refusals import RefusedError
from kvstrata.routing.cost import Profile

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "router.md"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"max_boddy": 1}, "did you mean 'max_body'"),
        ({"port": 70000}, "port"),
        ({"port": True}, "port"),
        ({"max_body": "64"}, "64"),
        ({"max_body": "64k"}, "max_body"),
        ({"keepalive": 0}, "keepalive"),
        ({"api_keys": "one"}, "api_keys"),
        ({"api_keys": ["with space"]}, "api_keys"),
        ({"replica": "http://a:1"}, "replica"),
        ({"replica": [{"url": "http://a:1", "nam": "x"}]}, "did you mean 'name'"),
        ({"replica": ["http://a:1", "http://a:1"]}, "two replicas"),
        ({"replica": ["ftp://a:1"]}, "http://host:port"),
        ({"replica": ["http://a:1/v1"]}, "without a path"),
        ({"replica": ["http://u:p@a:1"]}, "password"),
        ({"replica": ["http://a:99999"]}, "http://host:port"),
        ({"replica": [{"url": "http://a:1", "name": "a\r\nb"}]}, "name"),
        ({"max_body": "2GiB", "max_buffered": "1GiB"}, "max_buffered"),
    ],
)
def test_a_wrong_setting_is_named(table: dict, told: str) -> None:
    if table == {"max_body": "64"}:
        assert RouterConfig.parse(table).max_body == 64
        return
    with pytest.raises(ConfigError, match=told):
        RouterConfig.parse(table)


def test_secrets_are_not_told() -> None:
    with pytest.raises(ConfigError) as caught:
        RouterConfig.parse({"api_keys": ["sec ret"]})
    assert "sec ret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown", "authority"),
    [
        ("http://[::1]:80", "http://[::1]:80", "[::1]:80"),
        ("https://engine", "https://engine:443", "engine:443"),
        ("http://Engine:8001/", "http://engine:8001", "engine:8001"),
    ],
)
def test_addresses(url: str, shown: str, authority: str) -> None:
    parsed = parse_replica(url)
    assert (parsed.url, parsed.authority) == (shown, authority)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text('port = 1\npolicy = "x"\n[[replica]]\nurl = "http://a:1"\n')
    config = read_config(path, ["http://b:1"], {"port": 2, "host": None})
    assert (config.port, config.policy, config.host) == (2, "x", "127.0.0.1")
    assert [one.name for one in config.replica] == ["a:1", "b:1"]
    path.write_text("port = ")
    with pytest.raises(ConfigError, match=r"f\.toml"):
        read_config(path)


def test_what_is_stated_of_engines_is_a_table_of_known_figures() -> None:
    stated = RouterConfig.parse({"profile": {"prefill_tokens_per_s": 500}}).profile
    assert stated is not None and stated.prefill_tokens_per_s == 500
    assert stated.storage_bytes_per_s == Profile().storage_bytes_per_s
    for wrong in ({"speed": 1}, {"overlap": 2}, {"prefill_tokens_per_s": "many"}, 7):
        with pytest.raises(ConfigError, match=r"profile must be a table of .*storage_bytes_per_s"):
            RouterConfig.parse({"profile": wrong})


def test_the_document_lists_every_setting() -> None:
    from kvstrata.router.config import option_rows

    text = DOCUMENT.read_text(encoding="utf-8")
    for name, default, doc in option_rows():
        assert f"| `{name}` | `{default}` | {doc} |" in text


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4))
def test_health_follows_the_last_looks(looks: list[bool], limit: int) -> None:
    health = Health()
    for well in looks:
        health = health.well() if well else health.failed("x", limit)
    row = next((n for n, well in enumerate(reversed(looks)) if well), len(looks))
    assert health.failures == row
    if not looks:
        assert health.state is State.NEW
    elif row == 0:
        assert health.state is State.UP
    else:
        assert health.state is (State.DOWN if row >= limit else State.SUSPECT)
    assert health.leaving().well().state is State.LEAVING


def test_an_engines_load_is_the_sum_of_its_cores() -> None:
    text = (
        b"# HELP vllm:num_requests_running x\n"
        b'vllm:num_requests_running{engine="0",model_name="m"} 2.0\n'
        b'vllm:num_requests_running{engine="1",model_name="m"} 3.0\n'
        b'vllm:num_requests_waiting{engine="0"} 4.0\nvllm:num_requests_waiting_by_reason{a="b"} 9.0\n'
    )
    assert read_load(text) == EngineLoad(5, 4)
    assert read_load(b"nothing") is None


NAMES = st.sampled_from(
    [b"connection", b"x-a", b"te", b"authorization", b"host", b"content-length", b"upgrade"]
)
VALUES = st.sampled_from([b"x-a", b"close, x-a", b"authorization", b"host, te", b"1"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.booleans(), st.booleans())
def test_headers_of_one_hop_never_pass(headers: list, own: bool, keep: bool) -> None:
    replica = ReplicaConfig("http://e:1", "e", "e", 1, False, "key" if own else None)
    lines = to_engine(headers, replica, b"id", keep_authorization=keep).split(b"\r\n")
    names = [line.split(b":")[0] for line in lines if line]
    assert names.count(b"host") == 1
    assert not {b"connection", b"te", b"upgrade", b"content-length"} & set(names)
    given_keys = sum(name == b"authorization" for name, _ in headers)
    assert names.count(b"authorization") == (1 if own else given_keys if keep else 0)
    hidden = any(name == b"connection" and b"x-a" in value for name, value in headers)
    expected = 0 if hidden else sum(name == b"x-a" for name, _ in headers)
    assert names.count(b"x-a") == expected
    back = [line.split(b":")[0] for line in to_client(headers, b"d", b"r")]
    assert not {b"connection", b"te", b"upgrade", b"content-length"} & set(back)


def test_a_line_end_in_a_value_is_never_sent() -> None:
    for value in (b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b"):
        with pytest.raises(ValueError, match="line's end"):
            joined([b"x: " + value, b"y: 1"])


@given(
    st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=3), max_size=4),
    st.none() | st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
    st.integers(0, 9),
)
def test_a_load_cap_changes_nothing_else(body: dict, params: dict | None, cap: int) -> None:
    if params is not None:
        body["kv_transfer_params"] = params
    raw = msgspec.json.encode(body)
    for data in (raw, b" " + raw + b"\n"):
        asked = ask(Request("POST", "/", b"", [], "", 0.0, True, True, data), "i")
        changed = msgspec.json.decode(with_load_cap(asked, cap))
        assert changed.pop("kv_transfer_params") == {**(params or {}), "max_load_tokens": cap}
        assert changed == {key: value for key, value in body.items() if key != "kv_transfer_params"}


def test_the_line_serves_in_order_and_forgets_those_who_left() -> None:
    async def go() -> None:
        line, room, order = Line(), [0], []

        async def one(name: int) -> None:
            await line.wait(lambda: room[0] > 0, 3, 5.0)
            room[0] -= 1
            order.append(name)
            line.wake()

        tasks = [asyncio.create_task(one(n)) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as full:
            await line.wait(lambda: False, 3, 5.0)
        assert full.value.status == 429
        tasks[0].cancel()
        await asyncio.sleep(0)
        room[0] = 2
        line.wake()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [1, 2] and len(line) == 0
        late = asyncio.create_task(one(7))
        after = asyncio.create_task(one(8))
        await asyncio.sleep(0)
        room[0] = 1
        line.wake()
        late.cancel()  # its turn has come, and it goes: the turn passes to the next
        await asyncio.gather(late, after, return_exceptions=True)
        assert order == [1, 2, 8]
        with pytest.raises(RefusedError) as late_one:
            await line.wait(lambda: False, 3, 0.01)
        assert late_one.value.status == 503 and len(line) == 0

    asyncio.run(go())
