"""What the page does when a visitor does something; `wiring` says when.

Handlers run in threads of Gradio's; each run holds one while it waits in the worker's queue, which
is the only queue there is. What a run left is kept in `Results`, by a key that only its visitor
gets; nothing else is shared.
"""

import asyncio
import dataclasses
import time

import gradio as gr

from playground.robots.examples import examples
from playground.serving.events import Done
from playground.serving.worker import Down, Worker
from playground.ui import (
    causes,
    chunk,
    cuts,
    errors,
    links,
    matters,
    observation,
    occlusion,
    prompt_bar,
    prompts,
    recipe,
    robots,
    rollout,
    rollout_seam,
    runs,
    scenes,
    tabs,
    visits,
)
from playground.ui.episodes import section as episodes
from playground.ui.example_cache import ExampleCache, asked_by, measuring
from playground.ui.guard import visitors
from playground.ui.observation import Form
from playground.ui.progress import Progress
from playground.ui.request import sizes
from playground.ui.results import Results
from playground.ui.runs import Runs
from playground.ui.setup import Setup, Setups, judged
from playground.ui.tabs import Shown
from playground.ui.visits import Memory, Visits

_UPDATE_EVERY_S = 0.25
_LOOK_EVERY_S = 0.3  # while policies are loaded, or others wait
_TURN_S = 60.0  # that the first answer of an opened page waits for others at most
_LIVE_AFTER_S = 0.4  # a shorter run shows its result only, not its making


@dataclasses.dataclass(frozen=True, slots=True)
class States:
    """What the page keeps of a visitor.

    key        of the last run's results
    framed     the robot that the page was set for, once the policies are loaded
    """

    key: gr.State
    framed: gr.State


def states() -> States:
    """To be called inside the Blocks."""
    return States(key=gr.State(None), framed=gr.State(None))


def run_of(request: gr.Request) -> str:
    """What a visitor's plain run is called among the runs."""
    return request.session_hash or ""


class Handlers:
    """The components, what stands behind them, and what is done with both."""

    def __init__(
        self, setups: Setups, worker: Worker, results: Results, form: Form, shown: Shown,
        strip: gr.HTML, memory: Memory,
    ):  # fmt: skip
        """setups, worker, results: what all visitors share; form, shown, strip, memory: the
        components."""
        self.setups, self.worker, self.results = setups, worker, results
        self.form, self.shown, self.strip, self.memory = form, shown, strip, memory
        self.runs, self.visits = Runs(), Visits()
        self.cache = ExampleCache(setups, worker)
        self.state = states()

    # --- the frame ------------------------------------------------------------------------------

    def restore(self, browser):
        """The page as its visitor left it. Where the policies are loaded, the whole frame comes in
        the same update: a second one, close behind, could overtake it in the browser."""
        found = visits.restored(
            browser, self.memory, self.visits, self.setups, self.form, self.shown.measure
        )
        found = self._linked(browser, found)
        setup = self.setups.of(found.robot)
        if not setup.infos:
            return found.updates
        frame = self._frame(setup, found.policies, found.temperature)
        shown = self.form.state.value["values"]
        frame[self.form.state] = gr.update(judged=judged(setup, shown))
        updates = merged(frame, found.updates)
        return updates | (self._first_answer(setup) if found.robot is None else {})

    def _linked(self, browser, found: visits.Restored) -> visits.Restored:
        """The page as the link says that it was opened by. One that cannot be followed is reported,
        and the page opens as it would without it."""
        query = browser.get("query") if isinstance(browser, dict) else None
        shown = (tab for tab in self.shown.tabs.children if isinstance(tab, gr.Tab))
        titles = {str(tab.id): str(tab.label) for tab in shown}
        try:
            link = links.read(query) if isinstance(query, str) else None
            if link is None:
                return found
            opened = links.opened(link, self.setups, self.form)
            tab = links.tab(link, titles)
        except ValueError as error:
            gr.Warning(errors.escaped(error), title="This link cannot be opened")
            return found
        updates = merged(found.updates, opened.updates)
        if tab is not None:
            updates |= {self.shown.tabs: gr.update(selected=tab)}
        return dataclasses.replace(opened, updates=updates)

    def _first_answer(self, setup: Setup) -> dict:
        """The first example's answer, for a newcomer; {} where it is not there yet."""
        example = next(iter(examples(setup.robot)), None)
        jobs = asked_by(setup, example) if example else []
        found = self.cache.find(setup, jobs)
        return self._answer_again(setup, jobs, found, None) if found else {}

    async def follow_loading(self, request: gr.Request, robot, chosen, temperature, state, framed):
        """From the first look at the page until the policies are loaded. A run that waits for them
        says itself what it waits for."""
        if framed:
            yield {self.state.framed: framed}
            await self._wait_for_turn(run_of(request))
            return
        visitor = run_of(request)
        said = None
        while not self.setups.infos():
            status = self.worker.status()
            if status.state in ("down", "closed"):
                yield self._gone()
                return
            if said != status.loading and not self.runs.begun(visitor):
                said = status.loading
                setup = self.setups.of()
                yield {self.strip: Progress(setup, loading=said or "starting").payload()}
            await asyncio.sleep(_LOOK_EVERY_S)
        setup = self.setups.of(robot)
        updates = self._frame(setup, chosen, temperature)
        updates[self.form.state] = gr.update(judged=judged(setup, state["values"]))
        if self.runs.begun(visitor):
            del updates[self.strip]
        yield updates
        await self._wait_for_turn(visitor)

    async def _wait_for_turn(self, visitor: str) -> None:
        """Until nobody waits in line: what somebody asked for comes before a page's first answer,
        for which nobody did."""
        deadline = time.monotonic() + _TURN_S
        while self.worker.status().waiting and not self.runs.begun(visitor):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    def _gone(self) -> dict:
        notes = Progress(self.setups.of())
        try:
            self.worker.metadata(timeout_s=0)
        except (Down, TimeoutError) as error:
            notes.fail(str(error))
        return {self.strip: notes.payload()}

    def _frame(self, setup: Setup, chosen=None, temperature: float = 0.0) -> dict:
        """What follows from which policies there are and are chosen; None: as at first."""
        chosen = setup.chosen if chosen is None else chosen
        updates = observation.refreshed(setup, self.setups.robots(), self.form)
        updates |= observation.effects(setup, chosen, temperature, self.form)
        updates |= tabs.refreshed(setup, chosen, self.shown)
        return updates | {
            self.strip: Progress(setup).payload(),
            self.state.framed: setup.robot.name,
        }

    # --- the observation ------------------------------------------------------------------------

    def choose_robot(self, robot, temperature, framed):
        """Another robot, another observation; the last result belonged to the former. Gradio's
        Dropdown (6.31) reports each choice twice, and once more when it is left: whatever was put
        in meanwhile would be lost."""
        if robot == framed:
            return {self.state.framed: gr.skip()}
        setup = self.setups.of(robot)
        example = next(iter(examples(setup.robot)), None)
        values = observation.filled(setup, example, self.form)
        values[self.form.policies] = list(setup.chosen)
        values[self.form.cuts] = cuts.value(())  # they may name slots of the former
        updates = merged(self._frame(setup, temperature=temperature), values)
        return updates | {self.state.key: None} | tabs.cleared(self.shown)

    def judge(self, robot, state):
        return gr.update(judged=judged(self.setups.of(robot), state["values"]))

    def open(self, request: gr.Request, key, measure, wanted, *inputs):
        """Answers what a visitor finds in the form, unless the page came with the answer, or
        others wait; what cannot be run is said when Run is clicked."""
        yield {self.strip: gr.skip()}  # of a generator that yields nothing, Gradio empties all
        status = self.worker.status()
        if key or status.waiting or self.runs.begun(run_of(request)):
            return
        try:
            observation.request(self.setups, inputs).jobs(self.setups)
        except ValueError:
            return
        yield from self.run_example(request, key, measure, wanted, *inputs)

    def effects(self, robot, chosen, temperature):
        """Of the policies that are chosen, and of the temperature."""
        updates = observation.effects(self.setups.of(robot), chosen, temperature, self.form)
        return updates | tabs.chosen_columns(chosen, self.shown)

    def example(self, robot, event: gr.EventData):
        setup = self.setups.of(robot)
        try:
            example = examples(setup.robot)[int(event.index)]
        except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
            raise gr.Error("there is no such example", print_exception=False) from error
        return observation.filled(setup, example, self.form)

    def new_scene(self, robot):
        return self.scene(robot, None)

    def scene(self, robot, number):
        """The scene of that number, a fresh one without; the prompt stays."""
        seed, drawn = scenes.drawn(number)
        return observation.placed(self.setups.of(robot), seed, drawn, self.form)

    def check_picture(self, file):
        """A file that is no picture is refused at once, and taken out of its slot."""
        if file is None:  # taken out again meanwhile
            return gr.skip()
        try:
            size, read = sizes(file["path"])
        except ValueError as error:
            gr.Warning(errors.escaped(error), title="This picture cannot be used")
            return None
        if read != size:
            whole, half = (" x ".join(map(str, pair)) for pair in (size, read))
            gr.Info(f"This photo of {whole} pixels is read at {half}; the models see 224 x 224.")
        return gr.skip()

    # --- a run ----------------------------------------------------------------------------------

    @errors.for_page
    def run(self, request: gr.Request, key, measure, wanted, *inputs):
        """Yields what changes on the page while the policies answer."""
        self.worker.check(visitors.current())
        asked = observation.request(self.setups, inputs)
        jobs = asked.jobs(self.setups, attention=measure)
        yield from self._run(request, self.setups.of(asked.robot), jobs, key, wanted)

    @errors.for_page
    def measure(self, request: gr.Request, key, wanted):
        """The run that is shown, once more with attention measured: for whoever looks there."""
        kept = self.results.jobs(key)
        if not kept or self.runs.current(run_of(request)):
            yield {self.strip: gr.skip()}
            return
        jobs = [measuring(job) for job in kept]
        setup = self.setups.of(jobs[0].observation.robot)
        if found := self.cache.find(setup, jobs):
            yield self._answer_again(setup, jobs, found, key, wanted)
            return
        yield from self._run(request, setup, jobs, key, wanted)

    def _run(self, request, setup, jobs, key, wanted):
        """Yields updates from a place in line to the answers. key: of the result before; wanted:
        which plot of the chunk."""
        streams = self.runs.start(run_of(request), lambda: runs.submit(self.worker, jobs))
        names = [name for job in jobs for name in job.policies]
        notes = Progress(setup, names, self.worker.status().loading)

        def take(event):
            if not setup.infos and (known := self.setups.of(setup.robot.name)).infos:
                notes.know(known)
            notes.take(event)

        def answers(event) -> bool:
            return isinstance(event, Done) and bool(notes.pending)

        following = self.runs.follow(run_of(request), streams, take, _UPDATE_EVERY_S, answers)
        began, live, rows = time.monotonic(), False, tabs.rows()
        for count, _ in enumerate(following):
            updates = {self.strip: notes.payload()} if count else self._running(notes, True)
            if time.monotonic() - began > _LIVE_AFTER_S:
                live = live or any(notes.live().values())
                updates |= tabs.live(notes.live(), self.shown) if live else {}
            if notes.pending and not chunk.is_open(wanted):
                updates |= tabs.answered(notes.traces, notes.pending, rows, self.shown)
            yield updates
        if following.outcome == "replaced":  # the page shows the newer run
            yield {self.strip: gr.skip()}
            return
        if following.outcome == "stopped":
            notes.stop()
        if notes.failures:
            text = " ".join(errors.escaped(failure) for failure in notes.failures)
            gr.Warning(text, title="Not every policy answered")
        yield self._over(notes, jobs, key, wanted, rows)

    def run_typed(self, request: gr.Request, key, measure, wanted, *inputs):
        """As `run`, while the prompt is typed: not when others wait in line, and looks again at the
        next letter."""
        own = self.runs.current(run_of(request))
        if self.worker.status().waiting > len(own or ()):
            yield {self.form.rewordings: gr.update(slow="", waiting=True)}
            return
        yield from self.run(request, key, measure, wanted, *inputs)

    def run_example(self, request: gr.Request, key, measure, wanted, *inputs):
        """As `run`; an example that was answered before is not run again."""
        try:
            asked = observation.request(self.setups, inputs)
            setup, jobs = self.setups.of(asked.robot), asked.jobs(self.setups, attention=measure)
            found = self.cache.find(setup, jobs)
        except ValueError:
            found = None  # `run` says why
        if not found or self.runs.current(run_of(request)):
            yield from self.run(request, key, measure, wanted, *inputs)
            return
        self.runs.begin(run_of(request))
        yield self._answer_again(setup, jobs, found, key, wanted)

    def _answer_again(self, setup, jobs, found, key, wanted=None) -> dict:
        """Updates that show answers from the cache."""
        notes = Progress(setup, found, cached=True)
        for name, trace in found.items():
            notes.take(Done(name, trace))
        return self._over(notes, jobs, key, wanted, tabs.rows())

    def _keep(self, notes, jobs, before) -> str:
        """The key of the run's result, which takes the place of the one before."""
        self.results.drop(before)
        key = self.results.keep(notes.traces, jobs, visitors.current())
        notes.keep(key)
        return key

    def _running(self, notes, on: bool) -> dict:
        return {
            self.strip: notes.payload(),
            self.form.run: gr.update(interactive=not on, value="Running" if on else "Run"),
            self.form.stop: gr.update(interactive=on),
        }

    def _over(self, notes, jobs, key, wanted, rows) -> dict:
        """Updates for the end of a run, with its result where there is any. key: of the result
        before, which gives way. rows: of this run, as far as they were sent."""
        updates = tabs.live({}, self.shown)
        if notes.traces:
            key = self._keep(notes, jobs, key)
            updates |= tabs.drawn(notes.traces, key, wanted, rows, self.shown)
            # An answer from the cache took its time when the program started.
            reason = "" if notes.cached else prompt_bar.slow(notes.traces)
            updates[self.form.rewordings] = gr.update(slow=reason, waiting=False)
        return updates | self._running(notes, False) | {self.state.key: key}

    def plot(self, key, wanted):
        """The plot of the run that is shown, for whoever finds another one there; without a run,
        none."""
        traces = self.results.find(key)
        panel = self.shown.chunk
        if key and not traces:  # no longer kept
            return {panel.words: gr.skip()}
        return chunk.drawn(traces, key, wanted, panel)

    # --- a run from a file ----------------------------------------------------------------------

    @errors.for_page
    def open_file(self, file, *inputs):
        """Sets the page as a recipe has it, and asks for a run where nothing is missing."""
        tab = self.shown.recipe
        opened = recipe.read(file["path"])
        setup = self.setups.of(opened.recipe.robot)
        present = observation.present(*inputs)
        updates, missing = recipe.restored(setup, opened, present, self.form)
        chosen = updates[self.form.policies]["value"]
        frame = self._frame(setup, chosen, opened.recipe.options.temperature)
        updates = merged(frame, updates)
        updates |= {self.state.key: None} | tabs.cleared(self.shown)
        updates |= {self.shown.measure: opened.recipe.options.attention}
        said = missing or ["Running again what the file holds."]
        updates |= {tab.status: recipe.sentences(said), tab.opened: recipe.light(opened)}
        return updates | {tab.again: gr.skip() if missing else time.time_ns()}

    def judge_again(self, opened, key):
        tab = self.shown.recipe
        return {tab.status: recipe.verdict(opened, self.results.find(key)), tab.opened: None}

    # --- a robot's observation -----------------------------------------------------------------

    @errors.for_page
    def freeze(self, watch: robots.Watch, event: gr.EventData):
        """Sets the page as a robot saw the world; the policies are asked next."""
        exchange = robots.chosen(watch, event)
        setup = self.setups.of(exchange.observation.robot)
        updates = robots.frozen(setup, exchange, self.form)
        frame = self._frame(setup, updates[self.form.policies]["value"])
        updates = merged(frame, updates)
        return updates | {self.state.key: None} | tabs.cleared(self.shown)

    # --- the end --------------------------------------------------------------------------------

    def stop(self, request: gr.Request):
        self.runs.stop(run_of(request))

    def leave(self, request: gr.Request):
        """The page was closed."""
        self.runs.forget(run_of(request))
        for kind in (prompts, matters, causes, rollout, rollout_seam):
            self.runs.forget(kind.run_of(request))
        for run in (causes.path_of, cuts.run_of, occlusion.run_of):
            self.runs.forget(run(request))
        for run in episodes.runs_of(request):
            self.runs.forget(run)


def merged(first: dict, then: dict) -> dict:
    """Updates of both; where both speak of a component, `then` adds to what `first` says."""
    updates = dict(first)
    for part, value in then.items():
        if isinstance(updates.get(part), dict) and "__type__" in updates[part]:
            is_update = isinstance(value, dict) and "__type__" in value
            updates[part] = updates[part] | (value if is_update else gr.update(value=value))
        else:
            updates[part] = value
    return updates
