"""Who is here at the moment, and how often."""

import collections
import contextlib
from collections.abc import Iterator


class Present(collections.Counter[str]):
    """How many there are of each; who has left is not in it. Used on the event loop alone."""

    def come(self, who: str) -> None:
        self[who] += 1

    def leave(self, who: str) -> None:
        self[who] -= 1
        if not self[who]:
            del self[who]

    @contextlib.contextmanager
    def one(self, who: str) -> Iterator[None]:
        """One more, for as long as this is open."""
        self.come(who)
        try:
            yield
        finally:
            self.leave(who)
