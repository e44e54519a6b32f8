"""The admin API: which replicas there are, and changes to that."""

from collections.abc import Callable
from typing import Any

import msgspec

from kvstrata.errors import ConfigError
from kvstrata.router.chooser import Chooser
from kvstrata.router.config import ReplicaConfig, parse_replica
from kvstrata.router.downstream import ClientConnection
from kvstrata.router.inbound import Request
from kvstrata.router.refusals import RefusedError, bad_request
from kvstrata.router.replicas import Replicas

JSON = [(b"content-type", b"application/json")]
PREFIX = "/admin/replicas/"
DECISIONS = "/admin/decisions/"


class Admin:
    """Answers what is asked under `/admin`.

    Args:
        replicas: that there are.
        chooser: asked what it knows.
        reload: reads the configuration again and returns notes for people; raises ConfigError.
        now: seconds, of the clock that the chooser is used with.
        state: everything there is to show, as plain data for JSON.
        decision: all of one decision, by its id; raises RefusedError when it is not known.
    """

    def __init__(
        self,
        replicas: Replicas,
        chooser: Chooser,
        reload: Callable[[], list[str]],
        now: Callable[[], float],
        state: Callable[[], dict[str, Any]],
        decision: Callable[[str], dict[str, Any]],
    ) -> None:
        self._replicas = replicas
        self._chooser = chooser
        self._reload = reload
        self._now = now
        self._state = state
        self._decision = decision

    def answer(self, request: Request, client: ClientConnection) -> None:
        """Answer it. Raises RefusedError."""
        match request.method, request.path:
            case "GET", "/admin/replicas":
                found: Any = {"replicas": [one.describe() for one in self._replicas]}
            case "POST", "/admin/replicas":
                found = self._replicas.add(self._wanted(request)).describe()
            case "DELETE", path if path.startswith(PREFIX):
                found = self._remove(path.removeprefix(PREFIX))
            case "GET", "/admin/policy":
                found = self._chooser.describe(self._now())
            case "GET", "/admin/state":
                found = self._state()
            case "GET", path if path.startswith(DECISIONS):
                found = self._decision(path.removeprefix(DECISIONS))
            case "POST", "/admin/reload":
                found = self._again()
            case _:
                text = f"The admin API has no {request.method} {request.path:.200}."
                raise RefusedError(404, "not_found", text)
        client.respond(200, JSON, msgspec.json.encode(found))

    def _wanted(self, request: Request) -> ReplicaConfig:
        try:
            wanted = parse_replica(msgspec.json.decode(request.body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise bad_request("invalid_json", f"The body is not valid JSON: {error}.") from None
        except ConfigError as error:
            raise bad_request("invalid_replica", str(error)) from None
        old = self._replicas.get(wanted.name)
        if old is not None and old.config.url != wanted.url:
            raise RefusedError(409, "name_taken", f"{wanted.name} is the name of {old.config.url}.")
        if any(one.config.url == wanted.url and one.name != wanted.name for one in self._replicas):
            raise RefusedError(409, "url_taken", f"{wanted.url} is a replica already.")
        return wanted

    def _remove(self, name: str) -> dict[str, Any]:
        if not self._replicas.remove(name):
            raise RefusedError(404, "not_found", f"There is no replica {name:.200}.")
        left = self._replicas.get(name)
        return {"name": name, "in_flight": 0 if left is None else left.in_flight}

    def _again(self) -> dict[str, Any]:
        try:
            notes = self._reload()
        except ConfigError as error:
            raise bad_request("invalid_configuration", f"Nothing is changed: {error}") from None
        return {"replicas": [one.describe() for one in self._replicas], "notes": notes}
