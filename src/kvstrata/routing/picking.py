"""One of several appraised replicas: the cheapest, and which of those that are as good."""

from collections.abc import Sequence

from kvstrata.routing.decision import Appraisal
from kvstrata.routing.recent import Decayed
from kvstrata.routing.simple import draw

TIE_SHARE = 0.05
"""Share of the seconds to the first token that the model cannot tell apart."""
TIE_SECONDS = 0.002


def pick(
    request: str,
    considered: Sequence[Appraisal],
    before: str | None,
    placed: Decayed,
    now: float,
) -> tuple[Appraisal, str | None, str]:
    """Choose among appraisals in seconds.

    Args:
        request: its id, by which what is equal in every way is drawn.
        considered: at least one.
        before: the replica that this conversation was sent to last, or None.
        placed: tokens that each replica had to compute lately.
        now: seconds.

    Returns:
        The chosen one, the name of the next best by score, and the reason: "only", "cold" (nobody has
        anything), "stay" (as good as any, and the conversation was there before), "reuse" (nobody has
        more), "spread" (others have more, but it is not worth the wait or the load).
    """
    if len(considered) == 1:
        return considered[0], None, "only"
    ranked = sorted(considered, key=_score)
    best = ranked[0]
    limit = best.score + TIE_SECONDS + TIE_SHARE * max(best.terms.first_token, 0.0)
    chosen, reason = best, ""
    if ranked[1].score <= limit:
        tied = [one for one in ranked if one.score <= limit]
        here = [one for one in tied if one.replica == before]
        if here:
            chosen, reason = here[0], "stay"
        else:
            loads = [placed.value(one.replica, now) for one in tied]
            least = min(loads)
            equal = [one for one, load in zip(tied, loads, strict=True) if load == least]
            chosen = min(equal, key=lambda one: draw(request, one.replica))
    runner_up = ranked[1] if chosen is best else best
    longest = max(map(_offered, considered))
    if not longest:
        reason = "cold"
    elif not reason:
        reason = "reuse" if _offered(chosen) == longest else "spread"
    return chosen, runner_up.replica, reason


def _score(appraisal: Appraisal) -> float:
    return appraisal.score


def _offered(appraisal: Appraisal) -> int:
    """Tokens that a replica could reuse, whether or not it is worth while."""
    reuse, tokens = appraisal.reuse, appraisal.tokens
    return tokens if reuse is None or reuse.storage.tokens < tokens else reuse.storage.tokens
