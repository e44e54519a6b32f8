"""Everything about the router, its replicas and its last decisions, as plain data for `/admin/state`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kvstrata.router.chooser import Chooser
from kvstrata.router.journal import Journal
from kvstrata.router.replicas import Replica, Replicas

SHOWN = 100
"""Decisions in one answer."""
WHOLE = 8
"""Candidates of a decision that are all told: of 64 it were megabytes a second for whoever looks on."""


def state_of(
    router: Mapping[str, Any],
    replicas: Replicas,
    chooser: Chooser,
    journal: Journal,
    now: float,
) -> dict[str, Any]:
    """The whole state.

    Args:
        router: of the router itself, as it is to be shown; its policy is added.
        replicas: that there are.
        chooser: asked what it knows of each.
        journal: of what happened.
        now: of the chooser's clock.
    """
    described = chooser.describe(now)
    learned = described.get("replicas", {})
    policy = {key: value for key, value in described.items() if key not in ("replicas", "fleet")}
    return {
        "router": {**router, "policy": described["policy"]},
        "policy": policy,
        "replicas": [_replica(one, chooser, learned.get(one.name, {}), now) for one in replicas],
        "tokens": journal.told(),
        "decisions": [record.as_dict(WHOLE) for record in journal.ledger.newest(SHOWN)],
    }


def _replica(
    replica: Replica, chooser: Chooser, learned: Mapping[str, Any], now: float
) -> dict[str, Any]:
    index = chooser.index_of(replica.name, now)
    load = replica.load
    return {
        "name": replica.name,
        "url": replica.config.url,
        "state": str(replica.health.state),
        "why": replica.health.why,
        "in_flight": replica.in_flight,
        "running": None if load is None else load.running,
        "waiting": None if load is None else load.waiting,
        "models": None if replica.models is None else sorted(replica.models),
        "index": None if index is None else dataclasses.asdict(index),
        "learned": learned,
        "accuracy": chooser.drift.describe(replica.name),
    }
