"""The page in a real browser: before a real router, and with states that are made by hand."""

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.router.page_browser import (
    STATE,
    devtools_of_a_browser,
    nothing_is_wrong,
    shown,
    tab,
)
from tests.unit.router.page_state import decision, drifting, replica, sample
from tests.unit.router.router_lab import Wire, ask, fleet, get, run, until
from tests.unit.router.stub_engine import StubEngine

__all__ = ["devtools_of_a_browser"]  # a fixture
HURT = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'
FIRST_ROW = ".decisions > tbody > tr:first-child"


@contextmanager
def router_process(directory: Path, *engines: StubEngine) -> Iterator[SimpleNamespace]:
    """`kvstrata route` in front of engines, as a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = directory / "fleet.toml"
    tables = [f'[[replica]]\nurl = "{one.url}"\nname = "{one.name}"\n' for one in engines]
    config.write_text(
        "\n".join([f"port = {port}", 'policy = "seconds"', "probe_every = 0.1", *tables])
    )
    # On a machine's first start it would go by load for a minute.
    subprocess.run([sys.executable, "-m", "kvstrata.router.preparing"], check=True)
    command = [sys.executable, "-m", "kvstrata.cli.main", "route", "--config", str(config)]
    with (directory / "router.log").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield SimpleNamespace(port=port, process=child)
    finally:
        child.kill()
        child.wait(20)


async def listening(router: SimpleNamespace) -> None:
    async with asyncio.timeout(60):
        while True:
            assert router.process.poll() is None
            try:
                (await Wire.open(router)).close()
                return
            except OSError:
                await asyncio.sleep(0.1)


async def stream(router: SimpleNamespace, prompt: list[int]) -> dict[str, str]:
    wire = await Wire.open(router)
    options = {"stream_options": {"include_usage": True}}
    got = await wire.ask(
        {"model": "tiny", "prompt": prompt, "stream": True, "max_tokens": 3, **options}
    )
    wire.close()
    assert got.status == 200 and got.whole
    return got.headers


def test_the_page_follows_a_real_router_until_it_dies(devtools: str, tmp_path: Path) -> None:
    async def go() -> None:
        engines = [await StubEngine(name, cached=32).start() for name in ("left", "right")]
        with router_process(tmp_path, *engines) as router:
            await listening(router)
            async with tab(devtools) as page:
                await page.go(f"http://127.0.0.1:{router.port}/ui")
                await page.until("document.querySelectorAll('.replicas .mark.up').length === 2")
                assert "2 of 2" in await page.text("#line")
                assert "No request" in await page.text("#decisions")

                headers = await stream(router, list(range(1000, 1080)))
                await page.until("document.querySelector('.decisions .mark.up')")
                row = await page.text(FIRST_ROW)
                assert headers["x-kvstrata-replica"] in row and "80\u00a0tok" in row
                assert "completions" in row and "32\u00a0tok" in row and "ms" in row
                identity = await page.value(
                    f"document.querySelector('{FIRST_ROW}').dataset.decision"
                )
                assert identity == headers["x-kvstrata-decision"]
                await page.until("document.querySelector('.scatter .point')")
                assert "tok/s" in await page.text("#learned")

                await page.click(f"{FIRST_ROW} .time")
                await page.until("document.querySelectorAll('.decisions .cost').length === 2")
                inside = await page.text(".decisions .inside")
                assert (
                    "left" in inside
                    and "right" in inside
                    and headers["x-kvstrata-decision"] in inside
                )
                nothing_is_wrong(page)

                router.process.kill()
                await page.until("!document.getElementById('banner').hidden")
                assert "does not answer" in await page.text("#banner")
                assert headers["x-kvstrata-replica"] in await page.text(FIRST_ROW)
        for engine in engines:
            await engine.stop()

    run(go(), 240)


def test_a_key_is_asked_for_kept_in_the_tab_and_sent_as_a_header(devtools: str) -> None:
    async def go() -> None:
        async with (
            fleet(StubEngine("a"), admin_key="geheim") as router,
            tab(devtools) as page,
        ):
            await page.go(f"http://127.0.0.1:{router.port}/ui")
            await page.until("document.activeElement.id === 'key'")
            assert await page.value("document.getElementById('main').hidden")
            for wrong in ("falsch", "schlüssel"):
                await page.send("Input.insertText", text=wrong)
                await page.press("Enter", 13, "\r")
                await page.until(
                    "document.getElementById('asked').innerText.startsWith('That key')"
                )
                await page.value("document.getElementById('asked').textContent = ''")
                assert await page.value("sessionStorage.length") == 0
            await page.send("Input.insertText", text="geheim")
            await page.press("Enter", 13, "\r")
            await page.until("document.querySelector('.replicas')")
            assert await page.value("document.getElementById('ask').hidden")
            assert await page.value("Object.values(sessionStorage).join()") == "geheim"
            assert await page.value("localStorage.length") == 0
            assert not any("geheim" in url for url in page.requests)
            await page.send("Page.reload")
            await page.until("document.querySelector('.replicas')")

    run(go())


def hurtful(value: Any) -> Any:
    """The same, with markup at the end of every text."""
    if isinstance(value, str):
        return value + HURT
    if isinstance(value, list):
        return [hurtful(one) for one in value]
    if isinstance(value, dict):
        return {name: hurtful(one) for name, one in value.items()}
    return value


def test_text_from_the_wire_is_never_markup(devtools: str) -> None:
    async def go() -> None:
        state = sample(decisions=4)
        state["replicas"].append(replica("d", state="down", why="it is gone"))
        before = {"replica": "b", "status": 502, "seconds": 1.0}
        state["decisions"][1].update(doubt="images", load_cap=64, earlier=[before])
        async with shown(devtools, hurtful(state)) as page:
            await page.until("document.querySelector('.decisions')")
            for place in range(4):
                await page.click(f"[data-replica^='{'abcd'[place]}'] td:nth-child(2)")
                await page.click(f"[data-decision^='{place:032x}'] .time")
            await page.until("document.querySelectorAll('.inside').length === 8")
            assert HURT in await page.value("document.body.textContent")
            assert (
                await page.value("document.querySelectorAll('main img, main script').length") == 0
            )
            assert await page.value("'hurt' in window") is False
            nothing_is_wrong(page)

    run(go())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_of_it_fits_at_every_width_in_both_schemes(devtools: str, scheme: str) -> None:
    async def go() -> None:
        state = sample()
        state["replicas"].append(drifting("a-replica-with-quite-a-long-name.example:8000"))
        state["decisions"][1]["model"] = "organisation/" + "a-model-with-a-very-long-name" * 3
        async with shown(devtools, state) as page:
            await page.prefer(scheme)
            await page.until("document.querySelector('.decisions')")
            await page.click(f"{FIRST_ROW} .time")
            await page.click("[data-replica='c'] td:nth-child(2)")
            await page.click("#all")
            for width in (1680, 1280, 1241, 1000, 970, 950, 600, 360):
                await page.size(width, 900)
                assert await page.value("document.documentElement.scrollWidth") <= width, width
            red = await page.value(
                "parseInt(getComputedStyle(document.body).backgroundColor.split(/[(,]/)[1])"
            )
            assert red < 60 if scheme == "dark" else red > 200
            nothing_is_wrong(page)

    run(go())


def test_what_has_the_focus_keeps_it_and_what_is_open_stays(devtools: str) -> None:
    async def go() -> None:
        state = sample(decisions=2)
        async with shown(devtools, state) as page:
            await page.until("document.querySelector('.decisions')")
            await page.press("Tab", 9)
            assert await page.value("document.activeElement.id") == "pause"
            for name in ("a", "b", "c"):
                await page.press("Tab", 9)
                assert await page.value("document.activeElement.innerText") == name
            await page.press("Tab", 9)
            await page.press("Enter", 13, "\r")
            await page.until("document.querySelector('.decisions .inside')")
            opened = state["decisions"][0]["id"]
            assert (
                await page.value("document.activeElement.getAttribute('aria-expanded')") == "true"
            )

            newer = [decision(random.Random(number), number) for number in range(100, 220)]
            for decisions in ([*newer[:1], *state["decisions"]], newer[:100]):
                page.answers[STATE] = (200, {**state, "decisions": decisions})
                await page.until(
                    f"document.querySelector('{FIRST_ROW}').dataset.decision === '{newer[0]['id']}'"
                )
                focused = "document.activeElement.closest('tr').dataset.decision"
                assert await page.value(focused) == opened
                assert opened in await page.text(".decisions .inside")
            await page.until("document.getElementById('all').innerText.includes('101')")
            await page.press("Enter", 13, "\r")
            await page.until("!document.querySelector('.decisions .inside')")

    run(go())


def test_it_asks_only_while_it_is_seen_and_not_paused(devtools: str) -> None:
    async def go() -> None:
        async with shown(devtools, sample(decisions=1)) as page:
            await page.until("document.querySelector('.decisions')")

            def asked() -> int:
                return sum(url.endswith(STATE) for url in page.requests)

            async def goes_on() -> None:
                before = asked()
                await until(lambda: asked() > before + 1)

            async def rests() -> None:
                await asyncio.sleep(0.3)  # what is under way arrives
                before = asked()
                await asyncio.sleep(1.5)
                assert asked() == before

            hide = (
                "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
                "document.dispatchEvent(new Event('visibilitychange'))"
            )
            await goes_on()
            await page.value(hide % "true")
            await rests()
            await page.value(hide % "false")
            await goes_on()
            await page.click("#pause")
            await rests()
            await page.click("#pause")
            await goes_on()

    run(go())


def test_a_router_that_answers_something_else_is_told_and_got_over(devtools: str) -> None:
    async def go() -> None:
        error = {"error": {"message": "All is <b>lost</b>."}}
        async with shown(devtools, error, 503) as page:
            await page.until(
                "document.getElementById('banner').innerText === 'All is <b>lost</b>.'"
            )
            page.answers[STATE] = (200, sample())
            await page.until("document.getElementById('banner').hidden")
            await page.until("document.querySelector('.decisions')")
            assert "c: 61\u00a0% of what its index promised" in await page.text("#alarms")
            page.answers.clear()
            await page.until("!document.getElementById('banner').hidden")
            assert "What is shown is of" in await page.text("#banner")

    run(go())


def test_a_decision_among_many_is_fetched_whole_when_it_is_opened(devtools: str) -> None:
    async def go() -> None:
        engines = [StubEngine(f"r{number}") for number in range(12)]
        async with fleet(*engines, policy="least-loaded") as router, tab(devtools) as page:
            got = await ask(router, {"prompt": [1, 2], "model": "tiny"})
            state = (await get(router, "/admin/state")).json
            assert len(state["decisions"][0]["considered"]) == 2
            assert state["decisions"][0]["candidates"] == 12
            identity = got.headers["x-kvstrata-decision"]
            whole = (await get(router, f"/admin/decisions/{identity}")).json
            assert len(whole["considered"]) == 12
            assert (await get(router, "/admin/decisions/none")).status == 404
            await page.go(f"http://127.0.0.1:{router.port}/ui")
            await page.until(f"document.querySelector('{FIRST_ROW}')")
            await page.click(f"{FIRST_ROW} .time")
            await page.until(
                "document.querySelectorAll('.decisions .terms tbody tr').length === 12"
            )
            nothing_is_wrong(page)

    run(go())


def test_an_empty_router_is_shown(devtools: str) -> None:
    async def go() -> None:
        state = sample(decisions=0)
        nothing = dict.fromkeys(state["tokens"], 0)
        bare = replica("a", index=None, learned={}, running=None, waiting=None, models=None)
        state.update(replicas=[bare], tokens=nothing)
        async with shown(devtools, state) as page:
            await page.until("document.querySelector('.replicas')")
            assert "none kept" in await page.text(".replicas")
            assert "Nothing" in await page.text("#learned")
            assert "No streamed answer" in await page.text("#scatter")
            await page.click("[data-replica='a'] td:nth-child(2)")
            page.answers[STATE] = (200, {**state, "replicas": []})
            await page.until(
                "document.getElementById('replicas').innerText.includes('no replicas')"
            )
            nothing_is_wrong(page)

    run(go())
