"""Whether a directory can be a root, and how an operator is told that it cannot."""

import contextlib
import errno
import os
import stat
from pathlib import Path

from kvstrata.errors import ConfigError


def refuse_strangers(root: Path) -> None:
    """Refuse a root that everybody may write; one that is missing, or cannot be looked at, passes.

    Raises:
        ConfigError: everybody may write there; says the remedies.
    """
    with contextlib.suppress(OSError):  # what cannot be looked at is told of by who uses it
        if os.stat(root).st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"the option 'path' cannot be used: everybody may write in {root}, and so put there what "
                f"the model then reads as its own past; give a directory below it, which is made for this "
                f"user alone (such as {root / 'kvstrata'}), take the right away (chmod o-w {root}), or "
                f"accept it (option 'world_writable')"
            )


def unusable(directory: Path, error: OSError) -> ConfigError:
    """What to raise where a directory cannot be used."""
    name = errno.errorcode.get(error.errno or 0, "EIO")
    return ConfigError(
        f"the option 'path' cannot be used: {directory}: {error.strerror} ({name}); "
        f"give a directory that this user may create, read and write"
    )
