"""How much each tenant may hold of a shared root, and how much of it one engine may add. Pure."""

import math
from collections.abc import Mapping

from kvstrata.chunks.record import NO_TENANT
from kvstrata.chunks.tenants import DEFAULT, TenantTerms, Terms, tenant_mark
from kvstrata.tiers.shares import room

NOBODY = "nobody"
"""Whoever sends no salt."""
FULL = 0.9
"""Share of the bound from which on weights count."""

Held = Mapping[tuple[bytes, bytes], float]
"""Bytes by namespace (its fingerprint) and mark, as estimated."""


class Quotas:
    """What tenants may add.

    A named tenant's chunks in all namespaces count together. One that is not named is known by its mark
    alone, which is another one in each namespace: its terms hold in each.

    Args:
        terms: by tenant.
        namespace: fingerprint of the one that is written to.
    """

    def __init__(self, terms: TenantTerms, namespace: bytes) -> None:
        self._terms = terms
        self._namespace = namespace
        self._names = {tenant_mark(name, namespace): name for name in terms.named}

    def room(self, mark: bytes, held: Held, used: float, bound: float) -> float:
        """Bytes that an engine may add for a tenant before anyone looks again; infinite without a limit.

        Args:
            mark: of the tenant; zeros for nobody's chunks, which have no limit.
            held: by all tenants.
            used: bytes of the root.
            bound: of the root; infinite where there is none.
        """
        if mark == NO_TENANT:
            return math.inf
        name = self._names.get(mark)
        terms = self._terms.default if name is None else self._terms.named[name]
        limits = [math.inf if terms.quota is None else float(terms.quota)]
        if used >= FULL * bound:
            limits.append(bound * terms.weight / self._weights(mark, terms, held))
        limit = min(limits)
        return math.inf if limit == math.inf else room(self._held(mark, name, held), limit)

    def by_tenant(self, held: Held) -> dict[str, float]:
        """Bytes of each named tenant, by its name in hexadecimal, of the others together, and of nobody."""
        named = {name.hex(): self._of_name(name, held) for name in self._terms.named}
        nobody = sum(nbytes for (_, mark), nbytes in held.items() if mark == NO_TENANT)
        others = sum(held.values()) - nobody - sum(named.values())
        return {**named, DEFAULT: max(others, 0.0), NOBODY: nobody}

    def _held(self, mark: bytes, name: bytes | None, held: Held) -> float:
        if name is None:
            return held.get((self._namespace, mark), 0.0)
        return self._of_name(name, held)

    @staticmethod
    def _of_name(name: bytes, held: Held) -> float:
        return sum(
            nbytes for (space, mark), nbytes in held.items() if mark == tenant_mark(name, space)
        )

    def _weights(self, mark: bytes, terms: Terms, held: Held) -> float:
        """Of all tenants that hold something, and of this one."""
        total, seen = terms.weight, {self._names.get(mark, mark)}
        for space, other in held:
            # Nobody's chunks take part as one more tenant that is not named.
            names = {tenant_mark(name, space): name for name in self._terms.named}
            who = names.get(other, other)
            if who not in seen:
                seen.add(who)
                total += self._terms.named.get(who, self._terms.default).weight
        return total
