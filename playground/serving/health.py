"""How a supervisor asks after the playground and ends it: /healthz, /readyz, SIGTERM."""

import dataclasses
import signal
import threading
import time

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from playground.serving.worker import Worker


def routes(worker: Worker) -> APIRouter:
    """/healthz: 200 unless the worker has stopped for good. /readyz: 200 while it takes jobs and
    its process spoke within the time it last announced. Otherwise 503; the body is the status."""
    router = APIRouter()

    # async on purpose: neither waits, and neither needs a thread when all of them are taken
    @router.get("/healthz")
    async def healthz() -> JSONResponse:
        return _answer(worker, worker.live())

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        return _answer(worker, worker.ready())

    return router


def _answer(worker: Worker, well: bool) -> JSONResponse:
    return JSONResponse(dataclasses.asdict(worker.status()), status_code=200 if well else 503)


def wait_for_signal(other: threading.Event | None = None) -> None:
    """Blocks the main thread until SIGTERM, SIGINT or the event asks the program to end; a second
    signal then acts as it did before. The handler only takes note, so that nothing is torn in the
    middle."""
    received = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    former = [signal.signal(number, lambda *_: received.append(1)) for number in numbers]
    while not (received or (other is not None and other.is_set())):
        time.sleep(0.2)
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)
