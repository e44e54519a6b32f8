"""What is wrong with a fleet as its replicas describe themselves. Pure."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

from kvstrata.wire.snapshot import EngineFacts


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that an operator has to know.

    Attributes:
        code: one word, stable.
        replica: whom it is about.
        text: what was found, and the remedy.
    """

    code: str
    replica: str
    text: str


@dataclass(frozen=True, slots=True)
class _Rule:
    code: str
    value: Callable[[EngineFacts], Hashable]
    show: Callable[[EngineFacts], str]
    what: str
    remedy: str


_RULES = (
    _Rule(
        "block-size",
        # Without a known algorithm the size is a guess from the groups seen so far.
        lambda facts: facts.hash_tokens if facts.hash_algorithm else 0,
        lambda facts: str(facts.hash_tokens),
        "tokens of a block hash",
        "give all replicas the same --block-size",
    ),
    _Rule(
        "hash-algorithm",
        lambda facts: facts.hash_algorithm,
        lambda facts: facts.hash_algorithm or "not known",
        "block hash algorithm",
        "give all replicas the same --prefix-caching-hash-algo",
    ),
    _Rule(
        "hash-seed",
        lambda facts: facts.none_hash,
        lambda facts: facts.none_hash.hex()[:8] or "not known",
        "hash before the first block",
        "set PYTHONHASHSEED to one value for all replicas, or for none",
    ),
    _Rule(
        "groups",
        # Whoever does not tell its model does not tell its groups either: they are learned one by one.
        lambda facts: tuple(
            (group.group, group.kind, group.tokens_per_block, group.window_tokens)
            for group in facts.groups
            if facts.model
        ),
        lambda facts: ", ".join(
            f"{group.group}: {group.kind} of {group.tokens_per_block} tokens"
            for group in facts.groups
        ),
        "KV cache groups",
        "give all replicas the same model, --block-size and hybrid KV cache manager",
    ),
)


def compare(facts: Mapping[str, EngineFacts]) -> Iterator[Finding]:
    """Where replicas of one model differ from most of them, so that a prompt's blocks are not alike.

    Args:
        facts: by replica. Those that name no model are compared with all.
    """
    models = sorted({one.model for one in facts.values() if one.model}) or [""]
    for model in models:
        alike = {name: one for name, one in facts.items() if one.model in (model, "")}
        for rule in _RULES:
            yield from _compare(rule, alike)


def _compare(rule: _Rule, facts: Mapping[str, EngineFacts]) -> Iterator[Finding]:
    counted = Counter(rule.value(one) for one in facts.values() if _is_known(rule, one))
    if len(counted) < 2:
        return
    usual = counted.most_common(1)[0][0]
    example = next(one for one in facts.values() if rule.value(one) == usual)
    for name, one in facts.items():
        if _is_known(rule, one) and rule.value(one) != usual:
            yield Finding(
                rule.code,
                name,
                f"{rule.what}: {rule.show(one)}, with other replicas {rule.show(example)}; "
                f"they have no blocks in common: {rule.remedy}",
            )


def _is_known(rule: _Rule, facts: EngineFacts) -> bool:
    return bool(rule.value(facts))
