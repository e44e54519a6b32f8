"""Who else may use what is written: permissions of new files and directories."""

import enum
import os


class Sharing(enum.StrEnum):
    """Who may read and write what an engine makes; others never may."""

    USER = "user"
    """Processes of the same user."""
    GROUP = "group"
    """Processes of the same group too: they read chunks, renew their times, write beside them and evict."""

    @property
    def file_mode(self) -> int:
        """Permission bits of files."""
        return 0o660 if self is Sharing.GROUP else 0o600

    @property
    def directory_mode(self) -> int:
        """Permission bits of directories; in one of a group, new files are the group's."""
        return 0o2770 if self is Sharing.GROUP else 0o700

    def make_file(self, path: str) -> int:
        """Open a new file for writing.

        Returns:
            The descriptor.

        Raises:
            OSError: as the operating system reports it; EEXIST where there is one.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(path, flags, self.file_mode)
        if self is Sharing.GROUP:  # the process's mask has taken bits away
            os.fchmod(fd, self.file_mode)
        return fd

    def make_directory(self, path: str) -> None:
        """Make a directory whose parent is there.

        Raises:
            OSError: as the operating system reports it; EEXIST where there is one.
        """
        os.mkdir(path, self.directory_mode)
        if self is Sharing.GROUP:
            os.chmod(path, self.directory_mode)
