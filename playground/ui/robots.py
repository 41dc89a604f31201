"""The tab "Robot": who is connected, what a robot sees and is answered, and a way from there into
the page. Only where the page is this machine's own: a robot's pictures are private.
"""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import gradio as gr
from fastapi import APIRouter
from fastapi.responses import Response

from playground.run_file import MAX_FILE
from playground.serving import robot_traffic
from playground.serving.robot_traffic import Exchange, Traffic
from playground.trace import Options
from playground.ui import appearance, errors, observation
from playground.ui.observation import Form
from playground.ui.request import AS_TRAINED
from playground.ui.setup import Setup, Setups
from playground.views import robot as view

_ABOUT = (
    "Robots that are served over the network, live. Freeze takes an observation into the form, "
    "with the noise that the robot's chunk began from, and asks the policies."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Tab:
    view: gr.HTML
    file: gr.UploadButton
    status: gr.HTML


class Watch:
    """What the tab needs of the server. traffic: the robots'; port: where they connect."""

    def __init__(self, traffic: Traffic, port: int):
        self.traffic, self.port = traffic, port

    def payload(self, setups: Setups, watching: int | None, number: int | None) -> dict:
        """What the tab shows of a connection, of the latest that was answered without one."""
        traffic = self.traffic
        robots = traffic.robots()
        known = {robot.connection for robot in robots} | {traffic.opened()}
        if watching is None or (watching not in known and not traffic.kept(watching)):
            newest = traffic.kept()
            watching = newest[-1].connection if newest else traffic.opened()
        kept = [] if watching is None else traffic.kept(watching)
        shown = view.payload(robots, kept, number, setups.infos(), setups.conventions())
        return shown | {"watching": watching, "port": self.port, "link": f"robot/{watching}"}


def build() -> Tab:
    """To be called inside gr.Tabs."""
    with gr.Tab("Robot", id="robot"):
        gr.HTML(f"<p class='lead'>{_ABOUT}</p>", apply_default_css=False)
        shown = gr.HTML(None, **view.COMPONENT, elem_id="robot-view")
        with gr.Row(elem_classes="buttons"):
            file = gr.UploadButton(
                "Open a saved episode", file_types=[".zip"], size="sm", scale=0, min_width=200,
                elem_id="open-episode",
            )  # fmt: skip
        status = gr.HTML("", apply_default_css=False, elem_id="robot-status")
    return Tab(shown, file, status)


def wire(tab: Tab, watch: Watch, setups: Setups) -> None:
    """All but Freeze, which sets the whole page."""

    def news(asked):
        asked = asked if isinstance(asked, dict) else {}
        return watch.payload(setups, _whole(asked.get("watching")), _whole(asked.get("number")))

    @errors.for_page
    def open_file(file):
        number, text = opened(watch, file)
        return errors.status(text), watch.payload(setups, number, 0)

    tab.view.input(news, tab.view, tab.view, **appearance.PRIVATE)
    tab.file.upload(
        open_file, tab.file, [tab.status, tab.view], preprocess=False, **appearance.PRIVATE
    )


def opened(watch: Watch, file: Mapping[str, str] | None) -> tuple[int, str]:
    """The connection that a saved episode is shown as, and what is said of it. Raises ValueError
    for no file, and for one that is no episode."""
    if file is None:
        raise ValueError("choose the file of a saved episode")
    path = Path(file["path"])
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"the file is too large: at most {MAX_FILE >> 20} MB are taken")
    episode = robot_traffic.load(path)
    text = f"{len(episode.policies)} requests of {episode.robot}, opened."
    return watch.traffic.open(episode), text


def chosen(watch: Watch, event: gr.EventData) -> Exchange:
    """The request that Freeze names; raises ValueError once it is gone, and where none is named."""
    connection = _whole(getattr(event, "connection", None))
    number = _whole(getattr(event, "number", None))
    found = None
    if connection is not None and number is not None:
        found = watch.traffic.find(connection, number)
    if found is None:
        raise ValueError("this request is no longer kept; freeze a newer one")
    return found


def frozen(setup: Setup, exchange: Exchange, form: Form) -> dict:
    """Updates that set the form as the robot saw the world, bit for bit, with the noise of its
    chunk."""
    raw = exchange.observation
    pictures = []
    for camera in setup.cameras:
        names = [slot.name for slot in camera.slots.values() if slot.name in raw.images]
        pictures.append(raw.images[names[0]] if names else None)
    policies = [exchange.policy] if exchange.policy in setup.policies else list(setup.policies)
    return observation.put(
        setup,
        form,
        raw.prompt,
        raw.state.tolist(),
        policies,
        Options(seed=exchange.seed or 0),
        pictures,
        [AS_TRAINED] * len(pictures),
    )


def routes(traffic: Traffic) -> APIRouter:
    """/robot/<connection>: what is kept of it, as `robot_traffic.save` writes it."""
    router = APIRouter()

    @router.get("/robot/{connection}")
    def one(connection: int) -> Response:
        try:
            episode = robot_traffic.episode(traffic.kept(connection))
        except ValueError:
            return Response("Nothing is kept of this robot.", status_code=404)
        file = io.BytesIO()
        robot_traffic.save(episode, file)
        name = f"robot-{connection}-episode.zip"
        return Response(
            file.getvalue(),
            media_type="application/zip",
            headers={
                "Content-Disposition": f'attachment; filename="{name}"',
                "Cache-Control": "private, no-store",
                "X-Content-Type-Options": "nosniff",
            },
        )

    return router


def _whole(value: object) -> int | None:
    """A number that a browser sent, if it is a whole one."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
