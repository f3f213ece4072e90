"""Dynamic batches: texts of many requests are computed together, those of nearly equal length side by side.

While one batch is computed, what arrives waits; then the next batch takes from each waiting request in turn, so that a
request of thousands of texts doesn't hold up one of a single query. Nothing waits for a timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from bge_cocktail.models.cache import Embeddings
from bge_cocktail.models.embed import batches_by_tokens
from bge_cocktail.models.prompts import Role
from bge_cocktail.serving.backends import Backend, Ids

# batches that are computed before what has arrived meanwhile is looked at
_BATCHES_AT_ONCE = 2


class TooBusyError(Exception):
    """More tokens wait than may wait."""


@dataclass(eq=False)
class _Request:
    """Texts that came together.

    Attributes:
        batch: Their ids.
        role: Their prompt, for models that leave its tokens out of the mean.
        embeddings: Filled as they are computed, shape (texts, dimensions).
        done: Set with the embeddings, or with what went wrong.
        taken: How many texts are computed or being computed.
        left: How many are not computed yet.
    """

    batch: Sequence[Ids]
    role: Role
    embeddings: Embeddings
    done: asyncio.Future[Embeddings]
    taken: int = 0
    left: int = 0


@dataclass(eq=False)
class Batcher:
    """Puts the texts of requests into batches, and hands them to a thread that computes.

    Attributes:
        backend: What computes.
        executor: The thread.
        max_waiting_tokens: More than so many don't wait.
        on_batch: Told the texts, the tokens and the tokens with padding of each batch.
    """

    backend: Backend
    executor: Executor
    max_waiting_tokens: int
    on_batch: Callable[[int, int, int], None] = lambda _texts, _tokens, _padded: None
    waiting: deque[_Request] = field(default_factory=deque)
    waiting_tokens: int = 0
    _worker: asyncio.Task[None] | None = None

    async def embed(self, batch: Sequence[Ids], role: Role) -> Embeddings:
        """Return the embeddings of texts, shape (texts, dimensions).

        Raises:
            TooBusyError: Too much waits already; one request alone is always taken.
        """
        tokens = sum(map(len, batch))
        if self.waiting_tokens and self.waiting_tokens + tokens > self.max_waiting_tokens:
            raise TooBusyError
        empty = np.empty((len(batch), self.backend.dimensions), np.float32)
        done: asyncio.Future[Embeddings] = asyncio.get_running_loop().create_future()
        request = _Request(batch, role, empty, done, left=len(batch))
        self.waiting.append(request)
        self.waiting_tokens += tokens
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await done

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # whoever hung up is not computed for
            for request in [request for request in self.waiting if request.done.cancelled()]:
                self._forget(request)
            if not self.waiting:
                return
            chosen = self._choose()
            try:
                await loop.run_in_executor(self.executor, self._compute, chosen)
            except Exception as error:  # a batch that fails is answered to all in it, and the next goes on
                for request in {id(request): request for request, _ in chosen}.values():
                    if not request.done.done():
                        request.done.set_exception(error)
                    self._forget(request)
                continue
            for request, place in chosen:
                request.left -= 1
                self.waiting_tokens -= len(request.batch[place])
                if not request.left and not request.done.done():
                    request.done.set_result(request.embeddings)

    def _choose(self) -> list[tuple[_Request, int]]:
        """Take texts from each waiting request in turn, up to what is computed at once; all of one role."""
        budget = self.backend.batch_tokens * _BATCHES_AT_ONCE
        role = self.waiting[0].role
        chosen: list[tuple[_Request, int]] = []
        tokens = 0
        turn = deque(request for request in self.waiting if request.role == role)
        while turn and (tokens < budget or not chosen):
            request = turn.popleft()
            chosen.append((request, request.taken))
            tokens += len(request.batch[request.taken])
            request.taken += 1
            if request.taken < len(request.batch):
                turn.append(request)
            else:
                self.waiting.remove(request)
        return chosen

    def _forget(self, request: _Request) -> None:
        if request in self.waiting:
            self.waiting.remove(request)
        computed = len(request.batch) - request.left
        self.waiting_tokens -= sum(map(len, request.batch[computed:]))
        request.left = 0

    def _compute(self, chosen: Sequence[tuple[_Request, int]]) -> None:
        lengths = [len(request.batch[place]) for request, place in chosen]
        for rows in batches_by_tokens(lengths, self.backend.batch_tokens):
            batch = [chosen[row][0].batch[chosen[row][1]] for row in rows]
            embeddings = self.backend.embed(batch, chosen[rows[0]][0].role)
            for row, embedding in zip(rows, embeddings, strict=True):
                request, place = chosen[row]
                request.embeddings[place] = embedding
            self.on_batch(len(batch), sum(map(len, batch)), len(batch) * max(map(len, batch)))
