"""LMCache for `bench-fileio`: an environment of its own, and its process."""

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Any

from rich.console import Console

from lab import report
from lab.bench.page_cache import forget

ENVIRONMENT = report.BUILD / "lmcache-venv"
PACKAGES = (
    "lmcache==0.5.6",
    "aiofile==3.12.3",
    "caio==0.12.10",
    "aiofiles==25.1.0",
    "nvtx==0.2.17",
    "sortedcontainers==2.4.0",
)
"""Without what it wants for a GPU; torch and the rest are those of the environment that measures."""
SCRIPT = Path(__file__).with_name("fileio_rival.py")
WAYS = {"lmcache disk": "load_disk", "lmcache fs": "load_fs"}


class LMCache:
    """Its process; see `fileio_rival.Rival` for the orders.

    Raises:
        OSError: it does not start.
    """

    def __init__(self, python: Path, log: Path) -> None:
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [python, SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                # It would report its use to its makers, and the log of every read is no part of reading.
                env={**os.environ, "LMCACHE_TRACK_USAGE": "false", "LMCACHE_LOG_LEVEL": "ERROR"},
            )
        self._log = log

    def ask(self, name: str, *arguments: Any) -> Any:
        """One order. Returns its answer.

        Raises:
            OSError: the process is gone.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the empty line below says more
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"LMCache's process ended with code {self._process.wait()}: {self._log}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Chunks:
    """Its chunks of one size, in both of its ways.

    Args:
        process: of it.
        directory: made anew.
        size: bytes of a chunk.
        count: of chunks.
    """

    def __init__(self, process: LMCache, directory: Path, size: int, count: int) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self.process = process
        self.directory = directory
        self.paths: list[str] = process.ask("make", str(directory), size, count)
        os.sync()

    def seconds(self, way: str) -> float:
        """Of all chunks."""
        return float(self.process.ask(WAYS[way]))

    def drop_cache(self) -> None:
        """Take the files' pages from the page cache."""
        forget(self.paths)

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.directory, ignore_errors=True)


def start(console: Console) -> LMCache | None:
    """LMCache's process, installed first where it is missing; None where that fails."""
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            venv.create(ENVIRONMENT, with_pip=True)
        place = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
        )
        Path(place.strip(), "measuring.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES],
            check=True,
            capture_output=True,
            timeout=600,
        )
        process = LMCache(python, report.BUILD / "bench" / "lmcache.log")
        console.print(f"beside LMCache {process.ask('version')}")
    except (OSError, subprocess.SubprocessError) as error:
        console.print(
            f"[yellow]without LMCache, which could not be installed or started: {error}[/]"
        )
        return None
    return process
