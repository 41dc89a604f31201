"""More policies than fit into memory: those used last are held, the others are loaded when asked
for."""

import gc
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from typing import Any

from playground.serving.events import Phase
from playground.trace import PolicyInfo


class Shelf(Mapping[str, Any]):
    """The policies that are held, by name. All of it belongs to the engine's main thread.

    infos: of every policy that can be had, held or not. open_one: loads one, yields what it is at,
    and returns it ready to run. fits: whether these can be held together. load_s: by policy, what
    loading took, in s.
    """

    def __init__(
        self,
        infos: Mapping[str, PolicyInfo],
        open_one: Callable[[str], Generator[Phase, None, Any]],
        fits: Callable[[Collection[str]], bool],
    ):
        self.infos = dict(infos)
        self.load_s: dict[str, float] = {}
        self._open_one, self._fits = open_one, fits
        self._held: dict[str, Any] = {}  # the one used last at the end

    def __getitem__(self, name: str) -> Any:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def obtain(self, names: Collection[str]) -> Generator[Phase]:
        """Loads those of the policies that are not held, in place of those not used for longest.
        Yields what it is at. Raises ValueError for unknown ones, and where all of them do not fit
        together."""
        if unknown := set(names) - self.infos.keys():
            known = ", ".join(self.infos)
            raise ValueError(
                f"no policy is called {', '.join(sorted(unknown))}; there are: {known}"
            )
        for name in names:
            if name not in self._held:
                self._make_room(name, names)
                began = time.monotonic()
                self._held[name] = yield from self._open_one(name)
                self.load_s[name] = time.monotonic() - began
        for name in names:
            self._held[name] = self._held.pop(name)

    def fill(self) -> Generator[Phase]:
        """Loads as many as fit, in their order."""
        for name in self.infos:
            if name not in self._held and self._fits([*self._held, name]):
                yield from self.obtain([name])

    def _make_room(self, name: str, wanted: Collection[str]) -> None:
        while not self._fits([*self._held, name]):
            spare = next((held for held in self._held if held not in wanted), None)
            if spare is None:
                raise ValueError(
                    f"{', '.join(wanted)} do not fit into memory together: run fewer at once"
                )
            del self._held[spare]
            gc.collect()  # a model's modules refer to each other; its arrays go with them
