"""Policies by name."""

import difflib
from collections.abc import Mapping

from kvstrata.errors import ConfigError
from kvstrata.routing.cost import Profile
from kvstrata.routing.decision import Policy
from kvstrata.routing.seconds import Seconds
from kvstrata.routing.simple import SIMPLE

NAMES = (Seconds.name, *SIMPLE)


def make_policy(
    name: str = Seconds.name,
    profile: Profile | None = None,
    stated: Mapping[str, Profile] | None = None,
) -> Policy:
    """The policy of a name.

    Args:
        name: one of `NAMES`.
        profile: what is stated of every replica; only `seconds` uses it.
        stated: profiles of replicas that differ from it, by name.

    Raises:
        ConfigError: there is no such policy.
    """
    if name == Seconds.name:
        return Seconds(profile, stated)
    found = SIMPLE.get(name)
    if found is None:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no policy {name!r}, choose one of {', '.join(NAMES)}{hint}")
    return found()
