"""One of several priced replicas: the cheapest, and which of those that are as good."""

import math
from collections.abc import Sequence

from kvstrata.routing.pricing import Prices
from kvstrata.routing.recent import Decayed
from kvstrata.routing.simple import draw

TIE_SHARE = 0.05
"""Share of the seconds to the first token that the model cannot tell apart."""
TIE_SECONDS = 0.002


def pick(
    request: str,
    names: Sequence[str],
    prices: Prices,
    before: str | None,
    placed: Decayed,
    now: float,
) -> tuple[int, int | None, str]:
    """Choose among replicas in seconds.

    Args:
        request: its id, by which what is equal in every way is drawn.
        names: of the replicas, at least one.
        prices: of them, in the same order; a score that is no number counts as infinite.
        before: the replica that this conversation was sent to last, or None.
        placed: tokens that each replica had to compute lately.
        now: seconds.

    Returns:
        Places of the chosen one and of the next best by score, and the reason: "only", "cold" (nobody has
        anything), "stay" (as good as any, and the conversation was there before), "reuse" (nobody has
        more), "spread" (others have more, but it is not worth the wait or the load).
    """
    if len(names) == 1:
        return 0, None, "only"
    scores = [math.inf if score != score else score for score in prices.score]
    lowest = min(scores)
    best = scores.index(lowest)
    limit = lowest + TIE_SECONDS + TIE_SHARE * max(prices.first_token[best], 0.0)
    tied = [place for place, score in enumerate(scores) if score <= limit] or [best]
    chosen, reason = best, ""
    if len(tied) > 1:
        here = [one for one in tied if names[one] == before]
        if here:
            chosen, reason = here[0], "stay"
        else:
            loads = [placed.value(names[one], now) for one in tied]
            least = min(loads)
            equal = [one for one, load in zip(tied, loads, strict=True) if load == least]
            chosen = min(equal, key=lambda one: draw(request, names[one]))
    if chosen != best:
        second = best
    else:
        others = scores[:best] + scores[best + 1 :]
        second = others.index(min(others))
        second += second >= best
    longest = max(prices.offered)
    if not longest:
        reason = "cold"
    elif not reason:
        reason = "reuse" if prices.offered[chosen] == longest else "spread"
    return chosen, second, reason
