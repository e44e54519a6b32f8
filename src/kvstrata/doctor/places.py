"""Directories: the filesystem tier's and the arena's."""

from collections.abc import Iterator

from kvstrata.doctor.facts import PlaceFacts
from kvstrata.doctor.findings import Finding, found
from kvstrata.sizes import format_size

FEW_REQUESTS = 4
"""Room for fewer requests of the greatest length than this is called little."""
LITTLE_BYTES = 1 << 30
"""What is called little where the length of requests is not known."""


def check_path(
    place: PlaceFacts, longest_bytes: int | None, read_only: bool = False
) -> Iterator[Finding]:
    """The filesystem tier's directory.

    Args:
        place: what was found by trying it.
        longest_bytes: of the files of one request of the greatest length; None where it is not known.
        read_only: whether the engine only reads; then only an unreadable directory matters.
    """
    if place.error:
        yield found("path-unusable", place.path, place.error)
        return
    if read_only:
        return
    if place.write_error:
        code = "path-not-writable" if place.exists else "path-unusable"
        yield found(code, place.path, place.write_error)
        return
    if not place.renames:
        yield found("path-no-rename", place.path, f"a rename failed: {place.rename_error}")
    if place.room_error:
        yield found("path-full", place.path, f"a file of one chunk failed: {place.room_error}")
        return
    little = FEW_REQUESTS * longest_bytes if longest_bytes else LITTLE_BYTES
    if place.free_bytes is not None and place.free_bytes < little:
        yield found(
            "path-little-room",
            place.path,
            f"{format_size(place.free_bytes)} are free"
            + (
                f"; the longest request needs {format_size(longest_bytes)}" if longest_bytes else ""
            ),
        )


def check_shm(place: PlaceFacts, arena_bytes: int | None) -> Iterator[Finding]:
    """The arena's directory, before the engine has made its arena.

    Args:
        place: what was found by trying it.
        arena_bytes: the option `memory`; None where the engine chooses, which it does by what is free.
    """
    error = place.error or place.write_error
    if error or not place.exists:
        yield found("shm-unusable", place.path, error or "there is no such directory")
        return
    if not place.in_memory:
        yield found("shm-on-disk", place.path, "it is no tmpfs, ramfs or hugetlbfs")
    needed = arena_bytes or 64 << 20
    if place.free_bytes is not None and place.free_bytes < needed:
        yield found(
            "shm-small",
            place.path,
            f"{format_size(place.free_bytes)} are free; the arena needs {format_size(needed)}",
        )
