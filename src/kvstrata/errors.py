"""Every error that kvstrata raises on purpose.

::

    KVStrataError
    ├── ConfigError      an option, path or limit that the operator can correct
    │   └── ArenaError   the host arena cannot be created or attached
    └── RecordError      bytes that are not the chunk they should be (carries a `BadReason`)

A message names the thing that is wrong and the remedy. Nothing below the plug-in lets an `OSError`
escape: tiers translate it into an outcome, start-up code into a `ConfigError`.
"""

import enum


class BadReason(enum.StrEnum):
    """Why a stored chunk could not be used. The values label the metric `bad_records`."""

    TRUNCATED = "truncated"
    """Shorter than its header says, or empty."""
    FOREIGN = "foreign"
    """The magic number is not ours."""
    VERSION = "version"
    """Written by another record version."""
    HEADER = "header"
    """The header's own checksum does not match."""
    NAMESPACE = "namespace"
    """Belongs to another namespace."""
    KEY = "key"
    """Holds another chunk than its name says."""
    GEOMETRY = "geometry"
    """Block count or block bytes differ from the group's."""
    CHECKSUM = "checksum"
    """A block's payload does not match its checksum."""
    PERMISSION = "permission"
    """The operating system refused access."""
    IO = "io"
    """Any other input/output error."""
    SEALED = "sealed"
    """Sealed with a key that is not at hand."""
    SET_ASIDE = "set_aside"
    """Not tried: the tier keeps failing."""


CONTENT_REASONS = frozenset(
    {
        BadReason.TRUNCATED,
        BadReason.FOREIGN,
        BadReason.HEADER,
        BadReason.KEY,
        BadReason.GEOMETRY,
        BadReason.CHECKSUM,
    }
)
"""Reasons that condemn the file itself: it is removed, since no reader can ever use it."""


class KVStrataError(Exception):
    """Base of every error in this package."""


class ConfigError(KVStrataError):
    """A setting that the operator can correct; the message says how."""


class ArenaError(ConfigError):
    """The host arena cannot be created, sized or attached."""


class RecordError(KVStrataError):
    """Bytes that are not the chunk they should be.

    Attributes:
        reason: why, as a closed set.
    """

    def __init__(self, reason: BadReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
