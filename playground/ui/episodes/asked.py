"""What a visitor asks of a recorded episode, whichever part of the section asks it."""

import dataclasses
from collections.abc import Sequence

from playground.datasets.job import EpisodeRequest
from playground.datasets.lerobot import Episode
from playground.datasets.matching import Choice
from playground.trace import Options, PolicyInfo
from playground.ui.episodes.reading import Fit
from playground.ui.episodes.store import Opened
from playground.ui.setup import Setup


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A visitor's question: which episode, read how, under which prompt (None: the recorded)."""

    setup: Setup
    opened: Opened
    episode: Episode
    prompt: str | None
    choice: Choice
    fit: Fit

    def request(self, frames: Sequence[int], batch: int, prompt: str | None) -> EpisodeRequest:
        """Raises ValueError for frames that the episode does not have."""
        if beyond := [frame for frame in frames if not 0 <= frame < self.episode.length]:
            last = self.episode.length - 1
            raise ValueError(f"the episode has frames 0 to {last}; {beyond[0]} was asked")
        recorded = self.opened.recorded(self.episode.index, self.choice)
        names = tuple(self.fit.matches)
        return EpisodeRequest(names, recorded, tuple(frames), batch, prompt, Options())

    @property
    def infos(self) -> dict[str, PolicyInfo]:
        """Of the policies that the episode fits."""
        return {name: self.setup.infos[name] for name in self.fit.matches}
