"""What an operator sets of the router, parsed once: from the command line or from a TOML file."""

import dataclasses
import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from kvstrata.errors import ConfigError
from kvstrata.routing.cost import Profile
from kvstrata.sizes import parse_size

_LONGEST = 7 * 24 * 3600.0
_NAME = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST:
        raise ValueError("a number of seconds greater than 0, at most a week")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**6:
        raise ValueError("a whole number from 0 to 1000000")
    return value


def _positive(value: object) -> int:
    if _count(value) == 0:
        raise ValueError("a whole number from 1 to 1000000")
    return _count(value)


def _port(value: object) -> int:
    if _count(value) > 65535:
        raise ValueError("a port from 0 to 65535; 0 takes a free one")
    return _count(value)


def _size(value: object) -> int:
    try:
        return parse_size(value)
    except ConfigError:
        raise ValueError('a size such as "64MiB", or a number of bytes') from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("text that is not empty")
    return value


def _secret(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,4096}", value):
        raise ValueError("a key of visible ASCII characters")
    return value


def _secrets(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("a list of keys")
    return tuple(_secret(one) for one in value)


def _profile(value: object) -> Profile:
    try:
        return msgspec.convert(value, Profile)
    except (msgspec.ValidationError, ConfigError) as error:
        names = ", ".join(Profile.__struct_fields__)
        raise ValueError(f"a table of {names} ({error})") from None


def _option(default: Any, parse: Callable[[object], Any], doc: str) -> Any:
    return field(default=default, metadata={"parse": parse, "doc": doc})


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """One engine.

    Attributes:
        url: `http://host:port` or `https://host:port`, without a path.
        name: how it is called in decisions, metrics and the admin API; unique.
        host: the name or address to connect to.
        port: its port.
        tls: whether to speak TLS to it.
        api_key: sent to the engine as a bearer token instead of what the client sent; None passes
            the client's on.
    """

    url: str
    name: str
    host: str
    port: int
    tls: bool
    api_key: str | None = None

    @property
    def authority(self) -> str:
        """Value of the `host` header that the engine gets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Everything that can be set. Make one with `parse`; the constructor checks nothing.

    Sizes are bytes and times are seconds. Each field's metadata holds `doc` and `parse`.
    """

    replica: tuple[ReplicaConfig, ...] = ()
    host: str = _option("127.0.0.1", _text, "Address to listen at.")
    port: int = _option(8000, _port, "Port to listen at; 0 takes a free one.")
    policy: str = _option("seconds", _text, "How a replica is chosen.")
    tokenizer: str | None = _option(
        None,
        _text,
        "Directory of the model's files; without it they are found where an engine says, or the engine is "
        "asked.",
    )
    state: str | None = _option(
        None, _text, "File that keeps what the policy learns over a restart; written each minute."
    )
    profile: Profile | None = _option(  # noqa: RUF009  # as the others: a field with metadata
        None,
        _profile,
        "Table of what is thought of every engine's speed before anything is known.",
    )
    api_keys: tuple[str, ...] = _option(
        (), _secrets, "Keys that clients must show; without any, theirs is passed on to the engine."
    )
    admin_key: str | None = _option(
        None, _secret, "Key of the admin API; without it, only this machine may use it."
    )
    max_body: int = _option(64 << 20, _size, "Largest body of a request.")
    max_buffered: int = _option(1 << 30, _size, "Bytes of all bodies held at one time.")
    max_head: int = _option(64 << 10, _size, "Bytes of a request's line and headers.")
    max_connections: int = _option(8192, _positive, "Clients connected at one time.")
    max_in_flight: int = _option(256, _positive, "Requests that one replica is given at one time.")
    max_waiting: int = _option(1024, _count, "Requests that wait while all replicas are full.")
    max_wait: float = _option(30.0, _seconds, "Longest wait for a replica, then 503.")
    retries: int = _option(1, _count, "Second tries of a request that an engine had accepted.")
    connect_timeout: float = _option(5.0, _seconds, "Time to connect to an engine.")
    answer_timeout: float = _option(1800.0, _seconds, "Time from a request to its answer's head.")
    idle_timeout: float = _option(300.0, _seconds, "Silence inside an answer, then it is broken.")
    stall_timeout: float = _option(120.0, _seconds, "Time a client may leave an answer unread.")
    head_timeout: float = _option(30.0, _seconds, "Time for a client to send a request's headers.")
    body_timeout: float = _option(60.0, _seconds, "Silence inside a request's body.")
    keepalive: float = _option(75.0, _seconds, "Time an unused client connection is kept.")
    engine_keepalive: float = _option(4.0, _seconds, "Time an unused engine connection is kept.")
    probe_every: float = _option(2.0, _seconds, "Pause between two looks at an engine's health.")
    probe_timeout: float = _option(10.0, _seconds, "Time an engine has to say that it is well.")
    probe_failures: int = _option(3, _positive, "Failed looks in a row that make a replica down.")
    drain_grace: float = _option(1.0, _seconds, "At the end: time in which new ones still come in.")
    drain_timeout: float = _option(300.0, _seconds, "At the end: time for requests to finish.")

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> "RouterConfig":
        """A configuration from a mapping, as `tomllib` gives it; replicas under `replica`.

        Raises:
            ConfigError: an unknown key (the nearest known one is named), a wrong value, or two
                replicas with one name or address.
        """
        known = {one.name: one for one in fields(cls)}
        refuse_unknown(table, known, "the configuration")
        values: dict[str, Any] = {
            key: parsed(key, known[key].metadata["parse"], value)
            for key, value in table.items()
            if key != "replica" and value is not None
        }
        listed = table.get("replica", [])
        if not isinstance(listed, list | tuple):
            raise ConfigError("replica: write each one as a table under [[replica]]")
        config = cls(replica=tuple(parse_replica(one) for one in listed), **values)
        config.check()
        return config

    def check(self) -> None:
        """Refuse what no single value shows to be wrong. Raises ConfigError."""
        for what in ("name", "url"):
            seen: set[str] = set()
            for one in self.replica:
                value = getattr(one, what)
                if value in seen:
                    raise ConfigError(f"two replicas have the {what} {value!r}")
                seen.add(value)
        if self.max_body > self.max_buffered:
            raise ConfigError("max_body is larger than max_buffered, the room for all bodies")


def parsed(key: str, parse: Callable[[object], Any], value: object) -> Any:
    """`value` as `parse` reads it. Raises ConfigError, which names `key`."""
    try:
        return parse(value)
    except ValueError as error:
        shown = "" if "key" in key else f"; got {value!r:.100}"
        raise ConfigError(f"{key} must be {error}{shown}") from None


def refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for the first key of `given` that is not in `known`."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key).lower(), list(known), n=1, cutoff=0.5)
            remedy = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r:.100}; {remedy}")


def parse_replica(given: object) -> ReplicaConfig:
    """A replica from its address or from a table with `url` and perhaps `name` and `api_key`.

    Raises:
        ConfigError: not an address of an engine, or an unknown key.
    """
    table = {"url": given} if isinstance(given, str) else given
    if not isinstance(table, Mapping):
        raise ConfigError(f"a replica is an address or a table, not {given!r:.100}")
    refuse_unknown(table, {"url": 0, "name": 0, "api_key": 0}, "replica")
    url = str(table.get("url", ""))
    host, port, tls = _address(url)
    shown = f"[{host}]" if ":" in host else host
    name = table.get("name", f"{shown}:{port}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"replica name {name!r:.100}: use letters, digits and . _ : -")
    key = table.get("api_key")
    if key is not None:
        key = parsed("api_key of a replica", _secret, key)
    scheme = "https" if tls else "http"
    return ReplicaConfig(f"{scheme}://{shown}:{port}", name, host, port, tls, key)


def _address(url: str) -> tuple[str, int, bool]:
    wanted = f"replica address {url!r:.200}: write http://host:port or https://host:port"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(wanted) from None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise ConfigError(wanted)
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"{wanted}, without a path such as /v1, a query or a password")
    tls = parts.scheme == "https"
    return host, (443 if tls else 80) if port is None else port, tls


def read_config(
    path: Path | None, replicas: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> RouterConfig:
    """The configuration of a file, with `replicas` added and `changes` on top of it.

    Args:
        path: a TOML file, or None for the defaults.
        replicas: further addresses.
        changes: values by key, which win over the file's; None among them means not given.

    Raises:
        ConfigError: the file cannot be read, or what `RouterConfig.parse` refuses.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None
    listed = table.get("replica", [])
    if isinstance(listed, list):
        table["replica"] = [*listed, *replicas]
    table.update({key: value for key, value in (changes or {}).items() if value is not None})
    return RouterConfig.parse(table)


def only_at_start(old: RouterConfig, new: RouterConfig) -> list[str]:
    """Names of changed settings that need a restart of the router to take effect."""
    fixed = (
        "host",
        "port",
        "policy",
        "tokenizer",
        "state",
        "profile",
        "max_head",
        "engine_keepalive",
    )
    return [name for name in fixed if getattr(old, name) != getattr(new, name)]


def is_loopback(host: str) -> bool:
    """Whether `host`, an address as a socket gives it, is this machine's own."""
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def option_rows() -> list[tuple[str, str, str]]:
    """Name, default and meaning of every setting but the replicas, as the documents list them."""
    return [
        (one.name, repr(one.default), str(one.metadata["doc"]))
        for one in dataclasses.fields(RouterConfig)
        if one.name != "replica"
    ]
