"""`kvstrata inspect`: the namespaces of a root, and what keeps them apart."""

from pathlib import Path
from typing import Any

from kvstrata.cli import arguments, console
from kvstrata.tiers.catalog import NamespaceDir, iter_namespaces

SHOWN = 120
"""Characters of a fact that are shown; the JSON holds all."""


def inspect(
    path: arguments.Root,
    as_json: arguments.Json = False,
) -> None:
    """Show the namespaces of a directory: models, what their fingerprints cover, what differs.

    How much they hold is shown by `kvstrata usage`.
    """
    console.require_root(path)
    found = list(iter_namespaces(path))
    if as_json:
        console.print_json(
            {
                "path": str(path),
                "namespaces": [_document(one, _before(one, found)) for one in found],
            }
        )
    else:
        _show(path, found)


def differences(one: Any, other: Any) -> list[tuple[str, ...]]:
    """Where two namespaces' facts differ, in order: the fact's name, and below it those of its parts."""
    if one == other:
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        return sorted(
            (name, *rest)
            for name in one.keys() | other.keys()
            for rest in differences(one.get(name), other.get(name))
        )
    return [()]


def _before(one: NamespaceDir, found: list[NamespaceDir]) -> NamespaceDir | None:
    """The first of the same model, to compare with."""
    first = next(other for other in found if other.model == one.model)
    return None if first is one else first


def _document(namespace: NamespaceDir, before: NamespaceDir | None) -> dict[str, Any]:
    known = before and namespace.covers is not None and before.covers is not None
    apart = differences(namespace.covers, before.covers) if known and before else []
    return {
        "directory": namespace.path.name,
        "model": namespace.model,
        "fingerprint": namespace.fingerprint,
        "covers": namespace.covers,
        "compared_with": before.path.name if before else None,
        "differs_in": [".".join(names) for names in apart],
    }


def _show(path: Path, found: list[NamespaceDir]) -> None:
    out = console.out()
    if not found:
        out.print(f"{path}: no namespaces")
        return
    for namespace in found:
        out.print(namespace.path.name)
        out.print(f"  model        {namespace.model}")
        out.print(f"  fingerprint  {namespace.fingerprint}")
        if namespace.covers is None:
            out.print("  covers       unknown: namespace.json is missing or damaged")
        else:
            out.print(f"  covers       {', '.join(sorted(namespace.covers))}")
            _compare(namespace, _before(namespace, found))
        out.print()
    out.print(f"{len(found)} namespaces; kvstrata usage {path} shows what they hold")


def _compare(namespace: NamespaceDir, before: NamespaceDir | None) -> None:
    if before is None or before.covers is None:
        return
    out = console.out()
    out.print(f"  differs from {before.path.name} in")
    for names in differences(namespace.covers, before.covers):
        here, there = (_shown(one.covers, names) for one in (namespace, before))
        out.print(f"    {'.'.join(names)}: {here}; there {there}")


def _shown(covers: Any, names: tuple[str, ...]) -> str:
    """One fact, as much as fits into a line."""
    for name in names:
        covers = covers.get(name) if isinstance(covers, dict) else None
    text = repr(covers)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
