"""The simulated table as a robot: it asks a policy server for chunks as any openpi robot does.

    python app.py --robots
    python -m playground.tabletop.robot --connect ws://127.0.0.1:8000

It waits for a server that is still loading.
"""

import argparse
import contextlib
import os
import time
from collections.abc import Mapping

import numpy as np
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from playground.robots.builtin import TABLETOP
from playground.serving import robot_messages
from playground.tabletop.outcome import Outcome
from playground.tabletop.rollout import EXECUTE, Episode
from playground.tabletop.scene import Table, random_scene
from playground.trace import RawObservation

_RETRY_S = 1.0
_WAIT_S = 600.0  # a server may still be loading its policies


class PolicyServer:
    """A connection to a policy server by openpi's websocket protocol. url: ws://host:port, or with
    a path that names a policy; key: for `Authorization`, "" for none. Waits for a server that does
    not listen yet. Raises ValueError where it will not let this robot in."""

    def __init__(self, url: str, key: str = ""):
        headers = {"Authorization": f"Api-Key {key}"} if key else None
        self._open = contextlib.ExitStack()
        self._connection = _connected(self._open, url, headers)
        self.metadata: Mapping = robot_messages.unpack(self._connection.recv(decode=False))

    def infer(self, observation: Mapping) -> dict:
        """The server's answer: `actions` [horizon, dimensions] and timings. Raises ValueError with
        the server's words where it has none."""
        self._connection.send(robot_messages.pack(observation))
        data = self._connection.recv()
        if isinstance(data, str):
            raise ValueError(f"the policy server says: {data}")
        return robot_messages.unpack(data)

    def close(self) -> None:
        self._open.close()


def _connected(stack: contextlib.ExitStack, url: str, headers: Mapping[str, str] | None):
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            connection = connect(
                url,
                compression=None,
                max_size=robot_messages.MAX_BYTES,
                additional_headers=headers,
                proxy=None,
            )
            return stack.enter_context(connection)
        except InvalidStatus as error:
            reason = error.response.body.decode(errors="replace").strip()
            raise ValueError(f"{url} refuses: {reason}") from error
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(_RETRY_S)


def message(observation: RawObservation) -> dict:
    """An observation of the table as openpi's clients send one of ALOHA."""
    cameras = TABLETOP.cameras("pi0")
    return {
        "images": {cameras[s]: image for s, image in observation.images.items() if s in cameras},
        "state": observation.state.astype(np.float32),
        "prompt": observation.prompt,
    }


def drive(infer, prompt: str, scene: int, execute: int = EXECUTE) -> tuple[Outcome, list[float]]:
    """One episode: (how it ended, seconds from each observation to its chunk). infer: takes an
    observation as `message` makes it and gives the server's answer."""
    episode = Episode(Table(random_scene(scene)), prompt, execute=execute, every=None)
    waits = []
    while episode.outcome is None:
        observation = message(episode.look())
        began = time.monotonic()
        actions = infer(observation)["actions"]
        waits.append(time.monotonic() - began)
        for _ in episode.act(actions):
            pass
    return episode.outcome, waits


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connect", default="ws://127.0.0.1:8000", help="(%(default)s)")
    parser.add_argument("--prompt", default="touch the red cube", help="(%(default)s)")
    parser.add_argument("--scene", type=int, default=0, help="number of the first scene")
    parser.add_argument(
        "--episodes", type=int, default=1, help="as many scenes, one after the other"
    )
    return parser


def main() -> None:
    args = settings().parse_args()
    try:
        server = PolicyServer(args.connect, os.environ.get("PI0_PLAYGROUND_ROBOT_KEY", ""))
        print(f"connected: {dict(server.metadata)}", flush=True)
        for scene in range(args.scene, args.scene + args.episodes):
            outcome, waits = drive(server.infer, args.prompt, scene)
            median_ms = 1e3 * float(np.median(waits))
            verdict = {True: "success", False: "failure", None: "no verdict"}[outcome.success]
            print(
                f"scene {scene}: {verdict}, {outcome.reason}; {len(waits)} chunks, "
                f"median {median_ms:.0f} ms each",
                flush=True,
            )
    except (ValueError, OSError) as error:
        raise SystemExit(f"no episode: {error}") from error


if __name__ == "__main__":
    main()
