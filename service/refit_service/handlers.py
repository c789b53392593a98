"""The smaller requests of the API; each handler is what its name says, see `openapi` for the words."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from refit_agent.cache.upkeep import list_entries, prune
from refit_agent.cache.verify import verify
from refit_agent.cli.cache_document import entry_document, quota, verdict_document
from refit_agent.cli.explain_document import explain_document
from refit_agent.errors import CacheError
from refit_agent.gpu.detect import detect
from refit_service.bodies import json_response, one_of, read_json
from refit_service.openapi import document
from refit_service.protocol import BundleList, Health, PruneRequest, RegisterRequest, RenewRequest, VerifyRequest
from refit_service.state import SERVICE, note_damage
from refit_service.threads import in_thread

#: Work on the whole cache: one at a time, since each reads every file.
_upkeep = asyncio.Lock()


async def health(request: web.Request) -> web.Response:
    """Whether the service answers at all."""
    del request
    return json_response(Health())


async def status(request: web.Request) -> web.Response:
    """What the service does."""
    return json_response(request.app[SERVICE].status())


async def gpus(request: web.Request) -> web.Response:
    """The machine as selection sees it."""
    home = request.app[SERVICE].home
    machine = await in_thread(lambda: detect(home=home), "detect")
    return json_response({"machine": machine})


async def list_bundles(request: web.Request) -> web.Response:
    """All registered bundles."""
    return json_response(BundleList(bundles=request.app[SERVICE].registry.records()))


async def register(request: web.Request) -> web.Response:
    """Register a bundle, and make its engines in the background."""
    service = request.app[SERVICE]
    body = await read_json(request, RegisterRequest)
    record, new = service.registry.add(body.path, body.public_keys)
    service.warmer.look_again()
    return json_response(record, 201 if new else 200)


async def unregister(request: web.Request) -> web.Response:
    """Forget a bundle."""
    service = request.app[SERVICE]
    service.registry.remove(request.match_info["id"])
    service.warmer.look_again()
    return web.Response(status=204)


async def renew(request: web.Request) -> web.Response:
    """Let a lease hold for longer."""
    body = await read_json(request, RenewRequest, optional=True)
    return json_response(request.app[SERVICE].leases.renew(request.match_info["id"], body.ttl_s))


async def release(request: web.Request) -> web.Response:
    """End a lease."""
    request.app[SERVICE].leases.release(request.match_info["id"])
    return web.Response(status=204)


async def explain(request: web.Request) -> web.Response:
    """What would be chosen, and why not the rest."""
    folder = request.app[SERVICE].registry.folder(one_of(request, "bundle", required=True) or "")
    model, profile, target = (one_of(request, name) for name in ("model", "profile", "target"))
    keys = request.app[SERVICE].registry.pinned(folder)
    found, _ = await in_thread(lambda: explain_document(folder, model, profile, target, keys), "explain")
    return json_response(found)


async def cache(request: web.Request) -> web.Response:
    """The engines in the cache, least recently used first."""
    store = request.app[SERVICE].store

    def look() -> dict[str, object]:
        store.check_owner()
        entries = list_entries(store)
        total = sum(cached.size for cached in entries)
        documents = [entry_document(store, cached) for cached in entries]
        return {"cache": store.root, "bytes": total, "quota_bytes": quota(store), "entries": documents}

    return json_response(await in_thread(look, "cache"))


async def verify_cache(request: web.Request) -> web.Response:
    """Read engines whole; damaged ones are set aside, and made anew if a registered bundle needs them."""
    service = request.app[SERVICE]
    store = service.store
    body = await read_json(request, VerifyRequest, optional=True)

    async with _upkeep:
        verdicts = await in_thread(lambda: verify(store, body.keys), "verify")
    for verdict in verdicts:
        if verdict.fault:
            note_damage(service.tally, service.warmer, verdict)
    entries = [verdict_document(verdict) for verdict in verdicts]
    return json_response({"cache": store.root, "ok": all(e["ok"] for e in entries), "entries": entries})


async def prune_cache(request: web.Request) -> web.Response:
    """Delete leftovers and evict until the cache fits."""
    store = request.app[SERVICE].store
    body = await read_json(request, PruneRequest, optional=True)

    def work() -> dict[str, object]:
        limit = quota(store) if body.max_bytes is None else body.max_bytes
        before = sum(cached.size for cached in list_entries(store))
        failed: list[CacheError] = []
        removed = prune(store, limit, failed)
        after = sum(cached.size for cached in list_entries(store))
        if after > limit and failed:
            raise failed[0]
        freed = before - after
        return {"cache": store.root, "removed": removed, "freed_bytes": freed, "bytes": after, "quota_bytes": limit}

    async with _upkeep:
        return json_response(await in_thread(work, "prune"))


async def metrics(request: web.Request) -> web.Response:
    """Prometheus text."""
    service = request.app[SERVICE]
    body, kind = service.tally.text(service.gauges())
    return web.Response(body=body, headers={"Content-Type": kind})


async def page(request: web.Request) -> web.Response:
    """An address that opens the status page; the first call begins to listen on loopback."""
    service = request.app[SERVICE]
    return json_response(await service.page.link(service), 201)


async def openapi(request: web.Request) -> web.Response:
    """This API in words that machines read."""
    del request
    return web.Response(body=msgspec.json.encode(document()), content_type="application/json")
