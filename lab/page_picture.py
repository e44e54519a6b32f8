"""`python -m lab.page_picture [PNG]`: the router's page as a browser shows it, before real engines at work.

Two engines over one directory, `kvstrata route` in front of them, and a load of conversations; when most
of it is over, one decision that loads something is opened and the picture is taken.
"""

import asyncio
import contextlib
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

from lab.browser import Browser, Page, launched
from lab.fleet_client import LoadError, play
from lab.fleet_load import Scale, plan
from lab.fleet_stack import Engines, RouterProcess, engines

PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "router-page.png"
WIDTH = 1280
SEED = 6
LOAD = Scale(applications=3, users=3, turns=(6, 7), think_seconds=(3.0, 6.0), apart_seconds=15.0)
SEEN = 50
"""Answers before the picture is taken."""
COLOURS = 128
LOADING = """
[...document.querySelectorAll('.decisions .row')].find((row) =>
  row.querySelector('.reused .hue-storage, .reused .hue-memory') && row.querySelector('.mark.up'))
?? document.querySelector('.decisions .row')
"""


def work(url: str, model: str) -> None:
    """Send the load, until the router is gone."""
    with contextlib.suppress(LoadError):  # the picture is taken before the load is over
        play(url, model, plan(SEED, LOAD))


async def take(url: str, devtools: str, busy: threading.Thread, path: Path) -> None:
    """Wait until there is something to see, and write the picture."""
    async with Browser.at(devtools) as browser, browser.page() as page:
        await page.size(WIDTH, 900)
        await page.go(f"{url}/ui")
        await page.until("document.querySelector('.replicas')")
        while busy.is_alive() and await _answers(page) < SEEN:
            await asyncio.sleep(0.3)
        await page.value(f"({LOADING}).querySelector('.time').click()")
        await page.until("document.querySelector('.decisions .inside')")
        height = await page.value("document.documentElement.scrollHeight")
        await page.size(WIDTH, height)
        await asyncio.sleep(0.6)  # bars that grow
        await page.picture(path)
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


async def _answers(page: Page) -> int:
    return int(await page.value("document.querySelectorAll('.scatter .point').length"))


def main() -> None:
    """Make the picture."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    what = Engines(replicas=2)
    with (
        tempfile.TemporaryDirectory(prefix="page") as directory,
        launched() as devtools,
        engines(what, Path(directory)) as fleet,
        RouterProcess("seconds", fleet, what.model, Path(directory)) as router,
    ):
        busy = threading.Thread(target=work, args=(router.url, what.model), daemon=True)
        busy.start()
        asyncio.run(take(router.url, devtools, busy, path))
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
