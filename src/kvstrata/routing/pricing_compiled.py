"""The rule of `routing.pricing`, compiled for a whole fleet."""

import numpy as np

from kvstrata.compiled import compiled, part
from kvstrata.routing import pricing
from kvstrata.routing.cost import Vector

_choose_way = part(pricing.choose_way)
_add_up = part(pricing.add_up)
_STANDING = np.dtype([(name, np.float64) for name in pricing.Standing._fields])
_PRICE = np.dtype([(name, np.float64) for name in pricing.Price.__struct_fields__])


@compiled
def price_all(rows: Vector, tokens: float, load_cap: float, columns: Vector) -> None:
    """See `pricing.price_each`.

    Args:
        rows: float64 (replicas, figures of a `Standing`), contiguous.
        tokens: of the prompt.
        load_cap: the client's own, or `UNCAPPED`.
        columns: float64 (figures of a `Price`, replicas), where the answer goes.
    """
    standings = rows.reshape(-1).view(_STANDING)
    prices = np.zeros(len(standings), _PRICE)
    for place in range(len(standings)):
        _choose_way(standings[place], tokens, load_cap, prices[place])
        _add_up(standings[place], tokens, prices[place])
    figures = prices.view(np.float64)
    width = len(columns)
    for place in range(len(standings)):
        for figure in range(width):
            columns[figure, place] = figures[place * width + figure]
