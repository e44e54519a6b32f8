"""The router's page in a tab of a real browser."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lab.browser import Browser, Page, executable, launched
from tests.unit.router.router_lab import fleet
from tests.unit.router.stub_engine import StubEngine

STATE = "/admin/state"


@pytest.fixture(scope="module", name="devtools")
def devtools_of_a_browser() -> Iterator[str]:
    """Address of a browser's DevTools; one browser for all tests of a module."""
    if executable() is None:
        if os.environ.get("CI"):
            pytest.fail("continuous integration needs chromium; .ci/run installs it")
        pytest.skip("there is no Chromium here; on Debian: apt-get install chromium")
    with launched() as url:
        yield url


@asynccontextmanager
async def tab(devtools: str, width: int = 1280, height: int = 900) -> AsyncIterator[Page]:
    async with Browser.at(devtools) as browser, browser.page() as page:
        await page.size(width, height)
        yield page


@asynccontextmanager
async def shown(devtools: str, state: Any, status: int = 200) -> AsyncIterator[Page]:
    """The page, which is told that `state` is the router's."""
    async with fleet(StubEngine("a")) as router, tab(devtools) as page:
        page.answers[STATE] = (status, state)
        await page.intercept(STATE)
        await page.go(f"http://127.0.0.1:{router.port}/ui")
        yield page


def nothing_is_wrong(page: Page) -> None:
    """No complaint in the console, and nothing asked of anybody but the router."""
    assert page.complaints == []
    origins = {url.split("/ui")[0].split("/admin")[0] for url in page.requests}
    assert len(origins) == 1 and origins.pop().startswith("http://127.0.0.1:")
