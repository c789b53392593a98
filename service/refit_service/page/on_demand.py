"""`PageOnDemand`: the page's door, opened by the first who asks and again after it has closed itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from refit_agent.errors import ServiceStopping
from refit_service.protocol import PageLink

if TYPE_CHECKING:
    from refit_service.page.door import Door
    from refit_service.state import Service


class PageOnDemand:
    """One for each service. Used by the event loop's thread alone."""

    def __init__(self) -> None:
        self._door: Door | None = None
        self._opening = asyncio.Lock()
        self._ended = False

    async def link(self, service: Service) -> PageLink:
        """An address that opens the page once.

        Raises:
            SocketUnusable: the loopback interface cannot be listened on.
            ServiceStopping.
        """
        async with self._opening:
            if self._ended:
                raise ServiceStopping()
            if self._door is None or self._door.closed:
                from refit_service.page.door import Door  # here, since a service that nobody looks at needs none of it

                self._door = await Door.open(service)
            return self._door.link()

    async def close(self) -> None:
        """Tell the pages that the service ends, and listen no longer."""
        async with self._opening:
            self._ended = True
            if self._door is not None:
                await self._door.close()
