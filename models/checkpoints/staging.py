"""Arrays on their way to a device: several at a time, in the host's memory that one after the other
would take."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Sequence

# bytes done, bytes in all, name of the array at hand
Progress = Callable[[int, int, str], None]

# Decompressing, checking and copying each leave Python's lock to others.
_THREADS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """What is read at once.

    name: the array's
    staged: bytes as stored
    placed: bytes of the host's memory that stay; none of a GPU's
    take: reads it and puts it there
    """

    name: str
    staged: int
    placed: int
    take: Callable[[], None]


def take_all(pieces: Sequence[Piece], progress: Progress) -> None:
    """Takes the pieces in their order, several at a time. The first error ends it, once those under
    way have ended."""
    done, total, most = 0, sum(piece.staged for piece in pieces), most_held(pieces)
    running: dict[concurrent.futures.Future[None], Piece] = {}
    name = ""

    def wait() -> None:
        nonlocal done
        ended, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
        for future in [future for future in running if future in ended]:
            future.result()
            done += running.pop(future).staged
            progress(done, total, name)

    placed = 0
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for piece in pieces:
            while running and (
                len(running) == _THREADS or held(placed, [*running.values(), piece]) > most
            ):
                wait()
            name = piece.name
            progress(done, total, name)
            running[pool.submit(piece.take)] = piece
            placed += piece.placed
        while running:
            wait()


def held(placed: int, staged: Sequence[Piece]) -> int:
    """Bytes while these are read: their compressed and decoded ones, beside what was placed."""
    return placed + 2 * sum(piece.staged for piece in staged)


def most_held(pieces: Sequence[Piece]) -> int:
    """The most bytes that taking one piece after the other holds."""
    most, placed = 0, 0
    for piece in pieces:
        most = max(most, held(placed, [piece]))
        placed += piece.placed
    return max(most, placed)
