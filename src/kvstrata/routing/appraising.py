"""What is shown of a price: the candidate's appraisal."""

import msgspec

from kvstrata.routing.decision import Appraisal, Candidate
from kvstrata.routing.pricing import SOURCES, UNCAPPED, Price, Standing, add_up
from kvstrata.routing.probing import Way


def appraise(candidate: Candidate, here: Standing, price: Price) -> Appraisal:
    """A candidate's appraisal.

    Args:
        candidate: that was priced.
        here: how the request found it.
        price: of the request there.
    """
    tokens, indexed = int(price.tokens), int(here.indexed)
    on_device = min(int(here.device), tokens)
    return Appraisal(
        replica=candidate.name,
        score=price.score,
        terms=price.terms,
        tokens=tokens,
        device_tokens=on_device,
        predicted_tokens=max(on_device - indexed, 0),
        source=SOURCES[int(price.source)],
        memory_bytes=int(price.memory_bytes),
        storage_bytes=int(price.storage_bytes),
        load_cap=None if price.load_cap == UNCAPPED else int(price.load_cap),
        reuse=candidate.shown,
        trust=here.trust,
        index_age=candidate.index_age,
    )


def tried(chosen: Appraisal, here: Standing, way: Way, tokens: int) -> Appraisal:
    """The same replica, on another way.

    Args:
        chosen: as it was appraised.
        here: how the request found it.
        way: to resume there.
        tokens: of the prompt.
    """
    price = Price(
        tokens=float(way.tokens),
        memory_bytes=float(way.memory_bytes),
        storage_bytes=float(way.storage_bytes),
    )
    add_up(here, float(tokens), price)
    return msgspec.structs.replace(
        chosen,
        score=price.score,
        terms=price.terms,
        tokens=way.tokens,
        source=way.source,
        memory_bytes=way.memory_bytes,
        storage_bytes=way.storage_bytes,
        load_cap=way.load_cap,
    )
