"""What may be believed of a replica's health. Pure."""

import enum
import re
from dataclasses import dataclass, replace


class State(enum.StrEnum):
    """Whether a replica is given requests."""

    NEW = "new"
    """Not looked at yet; used when none is up."""
    UP = "up"
    SUSPECT = "suspect"
    """Failed lately; used when none is up."""
    DOWN = "down"
    """Failed several times in a row; not used."""
    LEAVING = "leaving"
    """Removed: it finishes what it has."""


USABLE = (State.UP, State.NEW, State.SUSPECT)


@dataclass(frozen=True, slots=True)
class Health:
    """One replica's state.

    Attributes:
        state: see `State`.
        failures: in a row.
        why: the last failure, for people; empty when there was none since it was up.
    """

    state: State = State.NEW
    failures: int = 0
    why: str = ""

    def well(self) -> "Health":
        """It said that it is well."""
        return self if self.state is State.LEAVING else Health(State.UP)

    def failed(self, why: str, limit: int) -> "Health":
        """A look at it, or a connection to it, failed; `limit` failures in a row make it down."""
        failures = self.failures + 1
        if self.state is State.LEAVING:
            return replace(self, failures=failures, why=why)
        return Health(State.DOWN if failures >= limit else State.SUSPECT, failures, why)

    def leaving(self) -> "Health":
        """It is removed."""
        return replace(self, state=State.LEAVING)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine's own metrics say of its queue: requests that run and that wait."""

    running: int = 0
    waiting: int = 0


_GAUGE = re.compile(
    rb"^vllm:num_requests_(running|waiting)(?:\{[^}\n]*\})? ([0-9.eE+]{1,40})\s*$", re.MULTILINE
)


def read_load(text: bytes) -> EngineLoad | None:
    """The load in an engine's Prometheus text, summed over its cores; None when it is not there."""
    counts = {b"running": 0, b"waiting": 0}
    found = False
    for name, value in _GAUGE.findall(text):
        try:
            number = float(value)
        except ValueError:
            continue
        if 0 <= number < 10**9:
            counts[name] += int(number)
            found = True
    return EngineLoad(counts[b"running"], counts[b"waiting"]) if found else None
