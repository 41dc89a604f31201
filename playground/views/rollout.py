"""A rollout as a film: frames as they come, the path of the chunk that is being executed, and what
came of it. The browser keeps the frames, to scrub them afterwards."""

import secrets
from typing import Literal

import numpy as np

from playground.tabletop import kinematics
from playground.tabletop.job import RolloutFrame
from playground.tabletop.outcome import Outcome
from playground.trace import PolicyInfo
from playground.views import paths, theme

# gr.HTML(value, **COMPONENT) with value None or `Film.payload()`.
COMPONENT = theme.component("player.js", "camera.js", "cameras.js", "rollout.js")

_QUALITY = 80  # of JPEG: a hundred frames are some 600 KB
_UNJUDGED = (
    "No verdict: the prompt names no task that the referee knows (touch or pick up the red, green "
    "or blue cube, or put it on or next to another)"
)

Verdict = Literal["", "success", "failure", "unjudged", "stopped", "broken"]


class Film:
    """Takes the frames of `playground.tabletop.job.rollout`, in order."""

    def __init__(self, info: PolicyInfo, prompt: str, scene: int):
        self._asked = {
            "id": secrets.token_hex(4),
            "policy": theme.identity(info),
            "prompt": theme.plain(prompt),
            "scene": scene,
        }
        self._frames: list[dict] = []
        self._looks: list[dict] = []
        self._say, self._verdict, self._measured = "", "", ""

    def take(self, frame: RolloutFrame) -> None:
        """Adds a frame; the last one brings the verdict."""
        if frame.look > len(self._looks):
            self._looks.append(
                {
                    "grippers": _grippers(frame.state, frame.chunk, len(frame.image)),
                    "failure": theme.plain(frame.failure),
                    "seen": [
                        {"name": slot, "url": theme.picture(image, _QUALITY)["url"]}
                        for slot, image in frame.seen.items()
                    ],
                }
            )
        self._frames.append(
            {
                "url": theme.picture(frame.image, _QUALITY)["url"],
                "time": frame.time_s,
                "look": frame.look,
                "executed": frame.executed,
            }
        )
        if frame.outcome is not None:
            self._measured = frame.measured
            self.end(*_words(frame.outcome, frame.time_s))

    def end(self, verdict: Verdict, say: str) -> None:
        """Whatever ended it, in words."""
        self._verdict, self._say = verdict, theme.plain(say)

    @property
    def time_s(self) -> float:
        """The table's time of the last frame."""
        return self._frames[-1]["time"] if self._frames else 0.0

    def payload(self) -> dict[str, object]:
        """frames {url, time, look, executed}; looks, one a chunk: {grippers, failure, seen};
        verdict, the words for it and how often the policy does that, "" as long as it goes on. The
        lists only grow."""
        return {
            **self._asked,
            "frames": list(self._frames),
            "looks": list(self._looks),
            "verdict": self._verdict,
            "say": self._say,
            "measured": self._measured,
        }


def _grippers(state: np.ndarray, chunk: np.ndarray | None, size: int) -> list[dict]:
    if chunk is None:
        return []
    mover = kinematics.moving_arm(state, chunk)
    return [
        paths.gripper(arm, points, moves=arm == mover)
        for arm, points in paths.pixels(state, chunk[None, None], size).items()
    ]


def _words(outcome: Outcome, time_s: float) -> tuple[Verdict, str]:
    match outcome.success:
        case True:
            return "success", f"Success after {time_s:.1f} s: {outcome.reason}."
        case False:
            return "failure", f"Failure after {time_s:.1f} s: {outcome.reason}."
        case None:
            return "unjudged", f"{_UNJUDGED}; it ran for {time_s:.0f} s."
