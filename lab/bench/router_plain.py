"""A proxy with nothing but the proxy: aiohttp on both sides, replicas in turn, no retries, no counters.

`python -m lab.bench.router_plain PORT REPLICA_PORT ...`
"""

import itertools
import sys

import uvloop
from aiohttp import ClientSession, TCPConnector, web

_HOP = frozenset({"host", "content-length", "connection", "transfer-encoding", "content-encoding"})


def application(ports: list[int]) -> web.Application:
    """Passes everything on to one replica after the other."""
    turns = itertools.cycle(ports)
    session: list[ClientSession] = []

    async def begin(_: web.Application) -> None:
        session.append(ClientSession(connector=TCPConnector(limit=0), auto_decompress=False))

    async def pass_on(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        url = f"http://127.0.0.1:{next(turns)}{request.rel_url}"
        async with session[0].request(request.method, url, data=body, headers=headers) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
            reply = web.StreamResponse(status=answer.status, headers=kept)
            if answer.content_length is not None:
                reply.content_length = answer.content_length
            await reply.prepare(request)
            async for piece in answer.content.iter_any():
                await reply.write(piece)
            await reply.write_eof()
            return reply

    made = web.Application(client_max_size=1 << 26)
    made.on_startup.append(begin)
    made.router.add_route("*", "/{path:.*}", pass_on)
    return made


def main() -> None:
    """Serve until a signal."""
    uvloop.install()
    ports = [int(one) for one in sys.argv[2:]]
    web.run_app(application(ports), host="127.0.0.1", port=int(sys.argv[1]), access_log=None)


if __name__ == "__main__":
    main()
