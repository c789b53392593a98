"""Talks to the service on this machine: HTTP/1.1 and JSON over a Unix socket, or on Windows over a port of
loopback (`loopback`), without any HTTP library.

`sync.ServiceClient` for threads, `aio.AsyncClient` for asyncio, `ask` for `ensure_engine`. Importing
http.client, aiohttp or asyncio takes longer than a cache hit may, so the synchronous half has nothing but
``socket`` and msgspec.
"""
