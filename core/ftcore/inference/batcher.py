"""Let pictures or texts of many clients through the network together."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import structlog
from attrs import define, field
from starlette.exceptions import HTTPException

from .predict import predict_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore.types.task import Prediction

    from .model import Model
    from .serve_limits import Limits, ServerMetrics


@define
class Batcher:
    """Lets what came while the network was busy through it together.

    Nobody waits for a batch to fill: it is what there is, so a lone request is answered at once.

    Attributes:
        model: what answers.
        limits: see there.
        numbers: counts the batches.
        tta: average over each picture and its mirror image.
        queue: what was asked, and where the answer goes.
        thread: in which the network works, so that the server hears requests meanwhile.
    """

    model: Model
    limits: Limits
    numbers: ServerMetrics
    tta: bool = False
    queue: asyncio.Queue[tuple[Any, asyncio.Future[Prediction]]] = field(factory=asyncio.Queue)
    thread: ThreadPoolExecutor = field(factory=lambda: ThreadPoolExecutor(1))

    async def submit(self, item: Any) -> Prediction:
        """Return what the network says of a picture or a text.

        Args:
            item: what `ftcore.inference.predict.transform` returns of it.

        Raises:
            HTTPException: 503, too many wait already; 500, the network fails.
        """
        if self.queue.qsize() >= self.limits.max_queue:
            raise HTTPException(503, "too many waiting requests; try again later", {"Retry-After": "1"})
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((item, answer))
        return await answer

    async def work(self) -> None:
        """Answer, until cancelled."""
        while True:
            batch = [await self.queue.get()]
            while len(batch) < self.limits.batch and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            if wanted := [(item, answer) for item, answer in batch if not answer.done()]:  # of clients that are there
                self.numbers.batches.observe(len(wanted))
                await self.answer([item for item, _ in wanted], [answer for _, answer in wanted])

    async def answer(self, items: Sequence[Any], answers: Sequence[asyncio.Future[Prediction]]) -> None:
        """Let the network see items; where it fails, that is the answer of each."""
        try:
            found: Any = await asyncio.get_running_loop().run_in_executor(self.thread, self.predict, items)
        except Exception as error:  # noqa: BLE001 - one request must not end the server
            structlog.get_logger().error("the network failed", error=f"{type(error).__name__}: {error}")
            found = [HTTPException(500, "the forward pass failed; see the server's log")] * len(items)
        for answer, one in zip(answers, found, strict=True):
            if not answer.done():
                answer.set_exception(one) if isinstance(one, HTTPException) else answer.set_result(one)

    def predict(self, items: Sequence[Any]) -> list[Prediction]:
        """Let the network see items."""
        return predict_batch(self.model, [(None, item) for item in items], tta=self.tta)
