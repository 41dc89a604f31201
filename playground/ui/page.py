"""The page: joins the observation, the strip, the tabs and the worker.

Handlers run in threads of Gradio's; each run holds one while it waits in the worker's line, which
is the only line there is. What a run left is kept in `Results`, by a key that only its visitor
gets; nothing else is shared.
"""

import asyncio
import os
import time
from collections.abc import Mapping

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware

from playground.robots.robot import Robot
from playground.run_file import MAX_FILE
from playground.serving import queue
from playground.serving.events import Done
from playground.serving.queue import Busy
from playground.serving.worker import Down, Worker
from playground.ui import bench as benches
from playground.ui import (
    checkpoints,
    endpoint,
    look,
    matters,
    norms,
    observation,
    progress,
    recipe,
    rollout,
    runs,
    scenes,
    tabs,
    visits,
)
from playground.ui.answers import Answers
from playground.ui.bench import Benches
from playground.ui.guard import Guard
from playground.ui.progress import Progress
from playground.ui.results import Results
from playground.ui.runs import Runs
from playground.ui.visits import Memory, Visits

_UPDATE_EVERY_S = 0.1
_LIVE_AFTER_S = 0.4  # a shorter run shows its result only, not its making
_SETTLE_S = 0.7
_THREADS = queue.SIZE + 32  # each waiting visitor holds one
_MAX_UPLOAD = MAX_FILE  # a run's ZIP; pictures are held to less
_MAX_EVENTS = 256  # Gradio's own queue; the worker's is shorter and the one that counts
# Gradio keeps a third of a MB of every visitor, 10,000 of them by itself. Whoever comes back after
# so many others finds the form as the browser keeps it, without the last result.
_VISITORS = 256
# It also keeps the last 10,000 calls, and sums them up after each for a page that is off.
_UNWATCHED = {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(1 << 60)}


def build(
    worker: Worker,
    robots: Mapping[str, Robot],
    results: Results,
    reopening: checkpoints.Reopening | None = None,
) -> gr.Blocks:
    """The page for a worker that has loaded these policies, or is about to. `robots`: by policy,
    with its conventions. reopening: takes what the page asks to be opened instead; None where it
    may not ask."""
    every = Benches(worker, robots)
    bench = every.of()
    os.environ.update(_UNWATCHED)
    with gr.Blocks(title=look.TITLE, analytics_enabled=False, fill_width=True,
                   delete_cache=(600, 6 * 3600)) as page:  # fmt: skip
        gr.HTML(
            f"<h1>{look.TITLE}</h1><p>Policies of the pi0 family, opened up: what they receive, "
            "who may attend to whom, how a chunk comes out of noise or tokens.</p>",
            apply_default_css=False,
            elem_classes="masthead",
        )
        if reopening is not None:
            checkpoints.tell(reopening)
        strip = gr.HTML(Progress(bench).payload(), **progress.COMPONENT, elem_id="strip")
        with gr.Row(elem_classes="body"):
            with gr.Column(scale=0, min_width=340, elem_classes="left"):
                form = observation.build(bench)
                if reopening is not None:
                    checkpoints.build(reopening)
            with gr.Column(scale=1, min_width=320, elem_classes="right"):
                shown = tabs.build(list(robots), bench, form)
        parts = _Parts(every, Runs(), results, worker, form, shown, strip)
        _wire(page, parts, visits.build(), Visits())
        endpoint.build(every, worker, results)
    page.queue(max_size=_MAX_EVENTS, default_concurrency_limit=None, api_open=False)
    return page


def serve(page: gr.Blocks, host: str, port: int) -> FastAPI:
    """Starts serving, in threads of its own, and gives the web application to add routes to."""
    served, _, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        max_threads=_THREADS,
        max_file_size=_MAX_UPLOAD,
        show_error=False,
        state_session_capacity=_VISITORS,
        run_history=False,  # camera pictures are private
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=["api"],
        app_kwargs={"middleware": [Middleware(Guard)]},
        theme=look.THEME,
        css=look.css(),
    )
    return served


class _Parts:
    """The components and what stands behind them; its methods are the page's handlers."""

    def __init__(self, every, runs, results, worker, form, shown, strip):
        self.every, self.runs, self.results, self.worker = every, runs, results, worker
        self.form, self.shown, self.strip = form, shown, strip
        self.answers = Answers(every, worker)
        # Keys of the last run and of the one that is drawn; and what the plot of actions shows.
        self.key, self.drawn, self.plotted = gr.State(None), gr.State(None), gr.State(None)

    async def follow_loading(self, request: gr.Request, robot, chosen, temperature):
        """From the first look at the page until the policies are loaded. A run that waits for them
        says itself what it waits for."""
        visitor = request.session_hash
        told = None
        while not self.every.infos():
            status = self.worker.status()
            if status.state in ("down", "closed"):
                yield self._gone()
                return
            if told != status.loading and not self.runs.begun(visitor):
                told = status.loading
                bench = self.every.of()
                yield {self.strip: Progress(bench, loading=told or "starting").payload()}
            await asyncio.sleep(0.3)
        # What restoring has just set must have arrived: with both updates at once, an option in
        # the closed accordion was seen to lose its restored value.
        await asyncio.sleep(_SETTLE_S)
        bench = self.every.of(robot)
        updates = self._frame(bench)
        updates |= observation.effects(bench, chosen, temperature, self.form)
        if self.runs.begun(visitor):
            del updates[self.strip]
        yield updates

    def _gone(self) -> dict:
        notes = Progress(self.every.of())
        try:
            self.worker.metadata(timeout_s=0)
        except (Down, TimeoutError) as error:
            notes.fail(str(error))
        return {self.strip: notes.payload()}

    def _frame(self, bench) -> dict:
        updates = observation.refreshed(bench, self.every.robots(), self.form)
        updates |= observation.effects(bench, bench.policies, 0.0, self.form)
        updates |= tabs.refreshed(bench, self.shown)
        return updates | {self.strip: Progress(bench).payload()}

    def _anew(self, bench) -> dict:
        found = benches.examples(bench.robot)
        frame, values = self._frame(bench), observation.filled(bench, None, self.form)
        if found:
            values = observation.filled(bench, found[0], self.form)
        frame[self.form.policies] |= {"value": list(bench.policies)}
        values[self.form.prompt] = frame[self.form.prompt] | {"value": values[self.form.prompt]}
        for index, picture in enumerate(self.form.pictures):
            if index < len(bench.cameras):
                values[picture] = frame[picture] | {"value": values[picture]}
        return frame | values

    def choose_robot(self, robot):
        """Another robot, another observation; the last result belonged to the former."""
        return self._anew(self.every.of(robot)) | {self.key: None} | tabs.cleared(self.shown)

    def judge(self, robot, state):
        judged = benches.judged(self.every.of(robot), state["values"])
        return gr.update(judged=judged)

    def effects(self, robot, chosen, temperature):
        updates = observation.effects(self.every.of(robot), chosen, temperature, self.form)
        return updates or {self.form.seed: gr.skip()}

    def example(self, robot, event: gr.EventData):
        bench = self.every.of(robot)
        example = benches.examples(bench.robot)[int(event.index)]
        return observation.filled(bench, example, self.form)

    def new_scene(self, robot):
        return self.scene(robot, None)

    def scene(self, robot, number):
        """The scene of that number, a fresh one without; the prompt stays."""
        seed, drawn = scenes.drawn(number)
        return observation.placed(self.every.of(robot), seed, drawn, self.form)

    def check_picture(self, file):
        """A file that is no picture is refused at once, and taken out of its slot."""
        if file is None:  # taken out again meanwhile
            return gr.skip()
        try:
            benches.picture(file["path"])
        except ValueError as error:
            gr.Warning(benches.words(error), title="This picture cannot be used")
            return None
        return gr.skip()

    # --- a run ----------------------------------------------------------------------------------

    def run(self, request: gr.Request, key, measure, *inputs):
        """Yields what changes on the page while the policies answer."""
        try:
            bench, jobs = observation.jobs(self.every, *inputs, attention=measure)
            streams = runs.submit(self.worker, jobs)
        except (ValueError, Busy, Down) as error:
            raise gr.Error(benches.words(error), print_exception=False) from error
        names = [name for job in jobs for name in job.policies]
        visitor = request.session_hash
        notes = Progress(bench, names, self.worker.status().loading)
        with self.runs.of(visitor, streams):
            yield self._running(notes, True)
            yield from self._events(streams, notes, bench)
            now = self.runs.current(visitor)
            if now is None:
                notes.stop()
            elif now is not streams:  # the page shows the newer run
                return
        if notes.traces:
            key = self._keep(notes, jobs, key)
        if notes.failures:
            told = " ".join(benches.words(text) for text in notes.failures)
            gr.Warning(told, title="Not every policy answered")
        yield self._running(notes, False) | tabs.live({}, self.shown) | {self.key: key}

    def run_example(self, request: gr.Request, key, measure, *inputs):
        """As `run`; an example that was answered before is not run again."""
        try:
            bench, jobs = observation.jobs(self.every, *inputs, attention=measure)
            found = self.answers.find(bench, jobs)
        except ValueError:
            found = None  # `run` says why
        if not found or self.runs.current(request.session_hash):
            yield from self.run(request, key, measure, *inputs)
            return
        self.runs.begin(request.session_hash)
        notes = Progress(bench, found, cached=True)
        for name, trace in found.items():
            notes.take(Done(name, trace))
        key = self._keep(notes, jobs, key)
        yield self._running(notes, False) | tabs.live({}, self.shown) | {self.key: key}

    def _keep(self, notes, jobs, before) -> str:
        """The key of the run's result, which takes the place of the one before."""
        self.results.drop(before)
        given = [p for job in jobs for p in job.observation.images.values()]
        key = self.results.keep(notes.traces, given)
        notes.keep(key)
        return key

    def _events(self, streams, notes, bench):
        """Updates at most every tenth of a second, and at once for what is news."""
        began = shown = time.monotonic()
        live = False
        for stream in streams:
            for event in stream:
                if not bench.infos and (bench := self.every.of(bench.robot.name)).infos:
                    notes.know(bench)
                news = notes.take(event)
                now = time.monotonic()
                if not news and now - shown < _UPDATE_EVERY_S:
                    continue
                shown = now
                updates = {self.strip: notes.payload()}
                if now - began > _LIVE_AFTER_S:
                    live = live or any(notes.live().values())
                    updates |= tabs.live(notes.live(), self.shown) if live else {}
                yield updates

    def _running(self, notes, on: bool) -> dict:
        return {
            self.strip: notes.payload(),
            self.form.run: gr.update(interactive=not on, value="Running" if on else "Run"),
            self.form.stop: gr.update(interactive=on),
        }

    def show(self, key, drawn):
        """The result of the run, apart from it: what a generator yields last is sent twice."""
        traces = self.results.find(key)
        if key == drawn or not traces:
            return {self.drawn: key}
        return {self.drawn: key} | tabs.drawn(traces, key, self.shown)

    def plot(self, key, plotted, units, execute):
        """The actions in the units asked for; with no key, none. Nothing else draws or hides them:
        an answer on its way could put back the units, or the robot, that a person has just left."""
        wanted = (key, units, execute)
        traces = self.results.find(key)
        if wanted == plotted or (key and not traces):
            return gr.skip(), gr.skip(), gr.skip()
        return wanted, *tabs.actions(traces, units, execute)

    # --- a run from a file ----------------------------------------------------------------------

    def open_file(self, file, *inputs):
        """Sets the page as a recipe has it, and asks for a run where nothing is missing."""
        tab = self.shown.recipe
        try:
            opened = recipe.read(file["path"])
            bench = self.every.of(opened.recipe.robot)
            present = observation.present(*inputs)
            updates, missing = recipe.restored(bench, opened, present, self.form)
        except ValueError as error:
            raise gr.Error(benches.words(error), print_exception=False) from error
        updates = _merged(self._frame(bench), updates)
        updates |= {self.key: None} | tabs.cleared(self.shown)
        updates |= {self.shown.measure: opened.recipe.options.attention}
        told = missing or ["Running again what the file holds."]
        updates |= {tab.status: recipe.sentences(told), tab.opened: recipe.light(opened)}
        return updates | {tab.again: gr.skip() if missing else time.time_ns()}

    def judge_again(self, opened, key):
        tab = self.shown.recipe
        return {tab.status: recipe.verdict(opened, self.results.find(key)), tab.opened: None}

    def stop(self, request: gr.Request):
        self.runs.stop(request.session_hash)

    def leave(self, request: gr.Request):
        """The page was closed."""
        for visitor in (request.session_hash, matters.run_of(request), rollout.run_of(request)):
            self.runs.forget(visitor)


def _merged(first: dict, then: dict) -> dict:
    """Updates of both; where both speak of a component, `then` adds to what `first` says."""
    said = {part: value if isinstance(value, dict) else gr.update(value=value)
            for part, value in then.items()}  # fmt: skip
    return first | {part: first.get(part, {}) | value for part, value in said.items()}


def _wire(page: gr.Blocks, parts: _Parts, memory: Memory, kept: Visits) -> None:
    """Every event of the page. None is an endpoint for programs: that is `/infer`."""
    form, shown = parts.form, parts.shown
    own = {"api_visibility": "private", "show_progress": "hidden"}
    whole = [
        parts.strip, *form.inputs, *form.columns, *form.titles, form.examples, form.scenes.column,
        form.scenes.seed, *shown.by_policy,
    ]  # fmt: skip

    def restore(browser):
        return visits.restored(browser, memory, kept, parts.every, form, shown.measure)

    before = [memory.browser, memory.key, shown.measure, *form.inputs]
    page.load(restore, memory.browser, before, preprocess=False, **own).then(
        parts.follow_loading, [form.robot, form.policies, form.temperature], whole, **own
    ).then(parts.judge, [form.robot, form.state], form.state, **own)
    visits.wire(memory, kept, form, shown.measure)
    page.load(None, js=look.script("zoom.js"), **own)
    page.unload(parts.leave)
    form.state.input(parts.judge, [form.robot, form.state], form.state, **own)
    gr.on(
        [form.policies.change, form.temperature.change],
        parts.effects,
        [form.robot, form.policies, form.temperature],
        form.options,
        **own,
    )
    for picture in form.pictures:
        picture.upload(parts.check_picture, picture, picture, preprocess=False, **own)
    run = {
        "fn": parts.run,
        "inputs": [parts.key, shown.measure, *form.inputs],
        "outputs": [
            parts.strip,
            parts.key,
            form.run,
            form.stop,
            shown.result,
            *shown.live.values(),
        ],
        "preprocess": False,
        **own,
    }
    show = {
        "fn": parts.show,
        "inputs": [parts.key, parts.drawn],
        "outputs": [parts.drawn, *shown.all],
        **own,
    }
    plot = {
        "fn": parts.plot,
        "inputs": [parts.key, parts.plotted, shown.units, shown.execute],
        "outputs": [parts.plotted, shown.plot, shown.words],
        "trigger_mode": "always_last",
        "concurrency_id": "plot",
        "concurrency_limit": 1,  # in the order asked for
        **own,
    }
    gr.on([shown.units.change, shown.execute.change], **plot)
    cleared = [*whole, parts.key, *shown.cleared]
    form.robot.input(parts.choose_robot, form.robot, cleared, **own).then(**plot)

    def answer(event, **how):
        """Runs the policies on that event, and shows what they answer. The plot comes last,
        when what holds it is shown again."""
        return event(**run | how).then(**show).then(**plot)

    answer(form.run.click)
    answer(form.prompt.submit)
    table = form.scenes
    filled = [table.seed, form.prompt, form.state, *form.pictures, *form.modes]
    chosen = form.examples.select(parts.example, form.robot, filled, **own)
    answer(chosen.then, fn=parts.run_example)
    form.stop.click(parts.stop, None, None, **own)
    placed = {"outputs": [table.seed, form.pictures[0], form.modes[0], form.state], **own}
    answer(table.new.click(parts.new_scene, form.robot, **placed).then)
    answer(table.seed.submit(parts.scene, [form.robot, table.seed], **placed).then)
    first = form.pictures[0]
    judged = [table.foreign, table.seed]
    first.change(scenes.judge, [form.robot, first], judged, preprocess=False, **own)
    rollout.wire(shown.rollout, form, parts.every, parts.worker, parts.runs)
    tab = shown.recipe
    tab.file.upload(
        parts.open_file,
        [tab.file, *form.pictures],
        [*cleared, shown.measure, tab.opened, tab.again],
        preprocess=False,
        **own,
    ).then(**plot)
    judge = {"fn": parts.judge_again, "inputs": [tab.opened, parts.key], **own}
    answer(tab.again.change).then(outputs=[tab.status, tab.opened], **judge)
    matters.wire(shown.matters, form, parts.every, parts.worker, parts.runs)
    norms.wire(shown.norms, form, parts.every)
