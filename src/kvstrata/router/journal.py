"""What is written down of every request: its decision, what came of it, and the counts of both."""

import time
from typing import Any

import msgspec

from kvstrata.router.asking import Asked
from kvstrata.router.chooser import Result
from kvstrata.router.ledger import Ending, Ledger, Record
from kvstrata.router.metrics import Meters
from kvstrata.router.sources import Sources, sources_of
from kvstrata.routing.decision import Decision, RequestView


class Journal:
    """Keeps the ledger and the meters.

    Args:
        meters: counts for Prometheus.

    Attributes:
        meters: as given.
        ledger: the last decisions.
        tokens: of all prompts that were answered, by where they came from; prompts that could not be
            counted are not in it.
    """

    def __init__(self, meters: Meters) -> None:
        self.meters = meters
        self.ledger = Ledger()
        self.tokens = Sources()

    def decided(self, asked: Asked, view: RequestView, decision: Decision, seconds: float) -> None:
        """A replica was chosen, in so many seconds, and the request goes there."""
        self.ledger.decided(record_of(asked, view, decision))
        self.meters.decided(decision, seconds)

    def ended(self, asked: Asked, view: RequestView, decision: Decision, result: Result) -> None:
        """An attempt is over."""
        cached = result.cached_tokens if result.status == 200 else None
        self.ledger.ended(
            result.id,
            Ending(
                result.replica,
                result.status,
                result.ttft,
                result.seconds,
                cached,
                result.failed,
                result.streamed,
            ),
        )
        self.meters.answered(asked.request.path, result)
        if result.status != 200 or result.failed:
            return
        appraisal = decision.appraisal
        if result.streamed and result.ttft is not None:
            self.meters.first_token(result.replica, result.ttft, appraisal.terms.first_token)
        if view.tokens is not None:
            sources = sources_of(appraisal, view.tokens, cached)
            self.tokens += sources
            self.meters.prompt(result.replica, sources)
            if cached is not None:
                self.meters.cached(result.replica, appraisal.tokens, cached)

    def told(self) -> dict[str, Any]:
        """`tokens` as plain data for JSON."""
        return msgspec.structs.asdict(self.tokens)


def record_of(asked: Asked, view: RequestView, decision: Decision) -> Record:
    """A decision of now."""
    path = asked.request.path
    return Record(decision, time.time(), path, asked.fields.model or "", view.doubt)
