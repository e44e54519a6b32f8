"""A headless Chromium of this machine, driven through its DevTools protocol."""

import asyncio
import base64
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 60.0
STEP_SECONDS = 30.0
_LARGEST = 64 << 20
_LIBC = ctypes.CDLL(None)  # loaded here: nothing may be loaded between fork and exec
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it visits nothing but pages of our own, and root may not run it otherwise
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of that memory
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
)


class BrowserError(Exception):
    """There is no browser, or it did not do what it was asked."""


def executable() -> str | None:
    """Path of a browser, or None when this machine has none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab.

    Attributes:
        complaints: errors and warnings of its console, exceptions, and violations of its policy.
        requests: addresses that it asked for.
        answers: to be given instead of the network's: (status, JSON body) by the end of the address.
    """

    def __init__(self, browser: "Browser", session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.answers: dict[str, tuple[int, Any]] = {}

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command. Raises BrowserError when the browser refuses it."""
        return await self._browser.send(method, parameters, self._session)

    async def go(self, url: str) -> None:
        """Open an address, and wait until all of it is loaded.

        Raises:
            BrowserError: it could not be loaded.
        """
        found = await self.send("Page.navigate", url=url)
        if found.get("errorText"):
            raise BrowserError(f"{url}: {found['errorText']}")
        await self.until("document.readyState === 'complete'")

    async def value(self, expression: str) -> Any:
        """What an expression of JavaScript is, as JSON has it. Raises BrowserError when it throws."""
        found = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true.

        Raises:
            BrowserError: it was not within `STEP_SECONDS`; the page's text is told.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STEP_SECONDS):
                while not await self.value(f"Boolean({expression})"):
                    await asyncio.sleep(0.05)
                return
        text = await self.value("document.body.innerText")
        raise BrowserError(f"never true: {expression}; the page says: {text:.2000}")

    async def text(self, selector: str) -> str:
        """Text of the first element that fits, as it is seen; empty when there is none."""
        return str(
            await self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        )

    async def click(self, selector: str) -> None:
        """Click on the middle of the first element that fits, with a mouse."""
        where = await self.value(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            " one.scrollIntoView({block: 'center'}); const r = one.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=where[0],
                y=where[1],
                button="left",
                clickCount=1,
            )

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    async def size(self, width: int, height: int, scale: float = 1.0) -> None:
        """Size of the window in CSS pixels, and how many pixels of a picture each has."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    async def prefer(self, scheme: str) -> None:
        """ "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.send("Emulation.setEmulatedMedia", features=[feature])

    async def intercept(self, *ends: str) -> None:
        """From now on, requests to addresses that end so get what `answers` has, or are broken."""
        patterns = [{"urlPattern": f"*{end}"} for end in ends]
        await self.send("Fetch.enable", patterns=patterns)

    async def picture(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        found = await self.send("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        path.write_bytes(base64.b64decode(found["data"]))

    async def begin(self) -> None:
        """Follow what the page does."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")

    async def close(self) -> None:
        """Close the tab."""
        await self._browser.send("Target.closeTarget", {"targetId": self._target})

    def told(self, method: str, what: dict[str, Any]) -> None:
        """Take in an event."""
        match method:
            case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps([one.get("value") for one in what["args"]]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(what["exceptionDetails"]))
            case "Log.entryAdded" if what["entry"]["level"] in ("error", "warning"):
                entry = what["entry"]
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
            case "Network.requestWillBeSent":
                self.requests.append(what["request"]["url"])
            case "Fetch.requestPaused":
                self._browser.spawn(self._answer(what))

    async def _answer(self, what: dict[str, Any]) -> None:
        url = what["request"]["url"]
        found = next((one for end, one in self.answers.items() if url.endswith(end)), None)
        if found is None:
            await self.send(
                "Fetch.failRequest", requestId=what["requestId"], errorReason="ConnectionRefused"
            )
            return
        await self.send(
            "Fetch.fulfillRequest",
            requestId=what["requestId"],
            responseCode=found[0],
            responseHeaders=[{"name": "content-type", "value": "application/json"}],
            body=base64.b64encode(json.dumps(found[1]).encode()).decode(),
        )


class Browser:
    """A browser that runs; see `launched`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Self]:
        """Connect to the DevTools at `url`, a WebSocket."""
        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            session.ws_connect(url, max_msg_size=_LARGEST) as socket,
        ):
            found = cls(socket)
            try:
                yield found
            finally:
                found._listening.cancel()
                for task in found._tasks:
                    task.cancel()

    def spawn(self, work: Any) -> None:
        """Do something beside all else; what the browser refuses is left out."""

        async def quietly() -> None:
            with contextlib.suppress(BrowserError):
                await work

        task = asyncio.create_task(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def send(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        """One command. Raises BrowserError when the browser refuses it or is silent."""
        self._number += 1
        number = self._number
        asked: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            asked["sessionId"] = session
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps(asked))
        try:
            answer = await asyncio.wait_for(future, STEP_SECONDS)
        except TimeoutError:
            raise BrowserError(f"{method}: no answer in {STEP_SECONDS} s") from None
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        found: dict[str, Any] = answer["result"]
        return found

    @asynccontextmanager
    async def page(self) -> AsyncIterator[Page]:
        """A new tab, with cookies and storage of its own."""
        context = (await self.send("Target.createBrowserContext", {}))["browserContextId"]
        asked = {"url": "about:blank", "browserContextId": context}
        target = (await self.send("Target.createTarget", asked))["targetId"]
        attached = await self.send("Target.attachToTarget", {"targetId": target, "flatten": True})
        session = attached["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        try:
            await page.begin()
            yield page
        finally:
            with contextlib.suppress(BrowserError, ConnectionError):
                await page.close()
                await self.send("Target.disposeBrowserContext", {"browserContextId": context})

    async def _listen(self) -> None:
        async for message in self._socket:
            what = json.loads(message.data)
            if "id" in what:
                future = self._waiting.get(what["id"])
                if future is not None and not future.done():
                    future.set_result(what)
            elif (page := self._pages.get(what.get("sessionId", ""))) is not None:
                page.told(what["method"], what["params"])


@contextmanager
def launched() -> Iterator[str]:
    """Start a browser, and end it with all its processes.

    Returns:
        Address of its DevTools, for `Browser.at`.

    Raises:
        BrowserError: there is none, or it did not start.
    """
    path = executable()
    if path is None:
        raise BrowserError("no Chromium here; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="browser", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            yield _address(Path(profile), process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _address(profile: Path, process: "subprocess.Popen[bytes]") -> str:
    told = profile / "DevToolsActivePort"
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        lines = told.read_text().split("\n") if told.exists() else []
        if len(lines) > 1:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise BrowserError(f"the browser did not start (exit status {process.returncode})")


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
