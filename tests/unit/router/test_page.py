"""The page's files and who may see what, without a browser."""

import itertools
import re
from collections.abc import Iterator
from importlib import resources

import numpy as np
import pytest

from kvstrata.router.access import check_admin
from kvstrata.router.inbound import Request
from kvstrata.router.page import PATHS, page
from kvstrata.router.refusals import RefusedError
from tests.unit.router.router_lab import Wire, fleet, get, run
from tests.unit.router.stub_engine import StubEngine

UI = resources.files("kvstrata.router") / "ui"
OUTSIDE = re.compile(r"(?:https?:)?//[a-z0-9]", re.IGNORECASE)
LONGEST_MODULE = 400


def texts() -> Iterator[tuple[str, str]]:
    for one in UI.iterdir():
        yield one.name, one.read_text()


def test_every_file_of_the_page_is_served_and_no_other() -> None:
    served = {"index.html" if path == "/ui" else path.removeprefix("/ui/") for path in PATHS}
    assert served == {one.name for one in UI.iterdir()}


def test_the_page_asks_for_nothing_from_outside() -> None:
    for name, text in texts():
        there = text.replace("http://www.w3.org/", "")  # names of XML's, which nobody asks for
        if name.endswith(".js"):
            there = re.sub(r"^\s*//.*$", "", there, flags=re.MULTILINE)
        assert not OUTSIDE.search(there), name
        assert len(text.splitlines()) < LONGEST_MODULE, name


def test_nothing_of_the_page_makes_markup_of_text() -> None:
    for name, text in texts():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", text
        ), name
    index = (UI / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", index)


def test_files_are_served_to_all_and_the_state_is_not() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), api_keys=["k"], admin_key="s") as router:
            for path in PATHS:
                got = await get(router, path)
                assert got.status == 200 and got.body == page(path)[1] and got.body
                policy = got.headers["content-security-policy"]
                assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
                assert got.headers["x-content-type-options"] == "nosniff"
                wire = await Wire.open(router)
                await wire.send(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
                head = await wire.reader.read()
                wire.close()
                assert b"content-length: %d\r\n" % len(got.body) in head
                assert head.endswith(b"\r\n\r\n")
            assert (await get(router, "/ui")).headers["content-type"].startswith("text/html")
            assert (await get(router, "/ui", method="POST")).status == 405
            assert (await get(router, "/ui/../page.py")).status == 404
            assert (await get(router, "/ui/nothing.js")).status == 404
            assert (await get(router, "/admin/state")).status == 401
            assert (await get(router, "/admin/state", authorization="Bearer s")).status == 200

    run(go())


def asked(method: str = "GET", peer: str = "127.0.0.1", **headers: str) -> Request:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(method, "/admin/state", b"", lines, peer, 0.0, True, True)


ALLOWED = [
    asked(host="127.0.0.1:8000"),
    asked("POST", host="localhost:8000"),
    asked("DELETE", host="[::1]:8000"),
    asked(host="router"),
    asked(),
    asked(host="127.0.0.1:8000", sec_fetch_site="same-origin"),
    asked(host="localhost", sec_fetch_site="same-origin"),
    asked(host="a.localhost:1"),
]
REFUSED = [
    asked(host="127.0.0.1:8000", peer="10.0.0.9"),
    asked(host="127.0.0.1:8000", sec_fetch_site="same-origin", peer="10.0.0.9"),
    # Other pages in a browser on this machine.
    asked(host="127.0.0.1:8000", sec_fetch_site="cross-site"),
    asked(host="127.0.0.1:8000", sec_fetch_site="same-site"),
    asked(host="127.0.0.1:8000", sec_fetch_site="none"),
    asked(host="127.0.0.1:8000", origin="http://elsewhere.example"),
    asked(host="127.0.0.1:8000", origin="null"),
    # Our page only reads.
    asked("POST", host="127.0.0.1:8000", sec_fetch_site="same-origin"),
    asked("DELETE", host="127.0.0.1:8000", origin="http://127.0.0.1:8000"),
    # Names that somebody elsewhere made to point here.
    asked(host="elsewhere.example:8000"),
    asked(host="127.0.0.1.elsewhere.example"),
    asked(host="localhost.elsewhere.example:8000", sec_fetch_site="same-origin"),
    asked(host="elsewhere.example."),
]


@pytest.mark.parametrize("request_", ALLOWED)
def test_without_a_key_this_machine_may_use_the_admin_api(request_: Request) -> None:
    check_admin(request_, None)


@pytest.mark.parametrize("request_", REFUSED)
def test_without_a_key_nobody_else_may(request_: Request) -> None:
    with pytest.raises(RefusedError) as caught:
        check_admin(request_, None)
    assert caught.value.status == 403 and caught.value.code == "admin_forbidden"


@pytest.mark.parametrize("request_", [*ALLOWED, *REFUSED])
def test_with_a_key_nothing_else_counts(request_: Request) -> None:
    with pytest.raises(RefusedError):
        check_admin(request_, "key")
    key = {"host": "elsewhere.example", "authorization": "Bearer key"}
    check_admin(asked(request_.method, request_.peer, **key), "key")


# What is seen with all cones, and without those for long, middle and short waves (Machado and others,
# 2009), of linear red, green and blue.
EYES = {
    "all": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])


def lab_of(colour: str, eye: str) -> np.ndarray:
    """CIELAB of `#rrggbb` as an eye sees it."""
    value = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(EYES[eye]) @ linear, 0, 1)
    ratios = XYZ @ seen
    f = np.where(ratios > 216 / 24389, np.cbrt(ratios), (24389 / 27 * ratios + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_tiers_hues_can_be_told_apart(eye: str, scheme: str) -> None:
    style = (UI / "style.css").read_text()
    found = {
        hue: re.findall(rf"--{hue}: (#[0-9a-f]{{6}});", style)[scheme == "dark"]
        for hue in ("device", "memory", "storage", "computed")
    }
    for one, other in itertools.combinations(found.values(), 2):
        assert np.linalg.norm(lab_of(one, eye) - lab_of(other, eye)) > 20, (one, other)
