"""Compiled code, brought before it is needed, and never where it would keep a request waiting.

On a machine's first start it takes about a minute to make. A process of its own does that and fills numba's
cache on disk, from which the router then takes it in a second; two routers that start at once take turns.
"""

import asyncio
import fcntl
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from kvstrata.chunks import block_hashes
from kvstrata.compiled import Kept, kept
from kvstrata.fleet import fleet
from kvstrata.router import ids
from kvstrata.routing import fleet_reuse, pricing

log = logging.getLogger(__name__)

MODULES = (
    "kvstrata.chunks.hash_chain",
    "kvstrata.fleet.table",
    "kvstrata.router.ids_compiled",
    "kvstrata.routing.fleet_rule",
    "kvstrata.routing.pricing_compiled",
    "kvstrata.wire.scan",
)
"""Where compiled functions are that routing calls."""
LONGEST = 900.0
"""Seconds after which compiling is given up."""
_STEPS: tuple[Callable[[], None], ...] = (
    ids.warm,
    block_hashes.warm,
    fleet.warm,
    fleet_reuse.warm,
    pricing.warm,
)


def warm() -> None:
    """Bring all compiled code: from numba's cache in a second, or else in about a minute."""
    for step in _STEPS:
        step()


async def compile_elsewhere() -> bool:
    """Have another process fill numba's cache. Returns whether all is there; says why if not."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LONGEST):
            _, told = await child.communicate()
    except TimeoutError:
        log.error("compiling took more than %.0f s and was given up", LONGEST)
        return False
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode == 0 and kept(MODULES) is Kept.ALL:
        return True
    last = told.decode(errors="replace").strip().rpartition("\n")[2]
    log.error("compiling failed with code %s: %s", child.returncode, last or "nothing was kept")
    return False


async def bring(start: Callable[[], None]) -> None:
    """Start what needs compiled code, once that is at hand. Returns when it is, or will not be.

    Args:
        start: is quick when all compiled code is in numba's cache; called in a thread.
    """
    state = kept(MODULES)
    if state is Kept.NOWHERE:
        log.warning(
            "requests are routed by load alone: what knows better has to be compiled, and there is no "
            "directory to keep that in; set NUMBA_CACHE_DIR to one that can be written to"
        )
        return
    if state is Kept.SOME:
        log.info(
            "requests are routed by load until the index is compiled, for about a minute, once"
        )
        if not await compile_elsewhere():
            log.warning("requests are routed by load alone, as the index could not be compiled")
            return
    await asyncio.get_running_loop().run_in_executor(None, start)
    log.info("requests are routed by what each replica holds")


def main() -> None:
    """Fill numba's cache. What another process compiles meanwhile is waited for, and not done again."""
    os.nice(10)
    lock = Path(tempfile.gettempdir()) / f"kvstrata-compiling-{os.getuid()}"
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        warm()


if __name__ == "__main__":
    main()
