"""Connections whose requests must come in time: uvicorn bounds how long one may be idle, not how slowly it speaks."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def protocol(head_seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with a limit.

    Args:
        head_seconds: A connection is closed if the head of a request takes longer, the first from when it is opened.
    """

    class Limited(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait_for_head()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            if self._limit is None:
                self._limit = self.loop.call_later(head_seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

    return Limited
