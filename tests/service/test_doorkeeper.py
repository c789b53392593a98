"""Who is let in at the socket."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from aiohttp import web

from refit_service.transport import Doorkeeper


async def _knock(path: str, uid: int) -> tuple[bytes, list[int | None]]:
    """What this process gets from the service of user ``uid``, and whom that service reports."""
    strangers: list[int | None] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text="hello")

    server = web.Server(answer)
    listener = await asyncio.get_running_loop().create_unix_server(Doorkeeper(server, uid, strangers.append), path)
    reader, writer = await asyncio.open_unix_connection(path)
    data = b""
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
        listener.close()
        await server.shutdown(1.0)
    return data, strangers


def test_its_own_user_is_let_in(tmp_path: Path) -> None:
    """Root too, if it is root's service."""
    data, strangers = asyncio.run(_knock(str(tmp_path / "s"), os.geteuid()))
    assert data.endswith(b"hello")
    assert strangers == []


def test_nobody_else_is(tmp_path: Path) -> None:
    """Neither another user, nor root, as which this runs on many machines: it would have work done in the user's name."""
    data, strangers = asyncio.run(_knock(str(tmp_path / "s"), os.geteuid() + 1))
    assert data == b""
    assert strangers == [os.geteuid()]
