"""The page at `/ui`: files of this package, and the headers that keep everything else out of it.

The page is the same for everyone and holds nothing secret, so it needs no key; what it shows comes from
the admin API, which does.
"""

from functools import cache
from importlib import resources

from kvstrata.router.headers import Headers

PAGE = "/ui"
_JAVASCRIPT = b"text/javascript; charset=utf-8"
_FILES = {
    PAGE: ("index.html", b"text/html; charset=utf-8"),
    "/ui/style.css": ("style.css", b"text/css; charset=utf-8"),
    "/ui/icon.svg": ("icon.svg", b"image/svg+xml"),
} | {
    f"/ui/{name}.js": (f"{name}.js", _JAVASCRIPT)
    for name in (
        "app",
        "answers",
        "bars",
        "decisions",
        "dom",
        "format",
        "overview",
        "reading",
        "replicas",
        "scatter",
        "terms",
    )
}
PATHS = frozenset(_FILES)
"""All that the page is made of. Its own references are relative, so that it works below a prefix too."""
_POLICY = b"; ".join(
    [
        b"default-src 'none'",
        b"script-src 'self'",
        b"style-src 'self'",
        b"img-src 'self'",
        b"connect-src 'self'",
        b"base-uri 'none'",
        b"form-action 'none'",
        b"frame-ancestors 'none'",
    ]
)
_HEADERS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    # A router of another version may answer at the same address tomorrow.
    (b"cache-control", b"no-cache"),
]


@cache
def _file(name: str) -> bytes:
    return (resources.files(__package__) / "ui" / name).read_bytes()


def page(path: str) -> tuple[Headers, bytes]:
    """Headers, without those that frame the body, and the body of a file.

    Args:
        path: one of `PATHS`.

    Raises:
        KeyError: it is none of them.
    """
    name, kind = _FILES[path]
    return [(b"content-type", kind), *_HEADERS], _file(name)
