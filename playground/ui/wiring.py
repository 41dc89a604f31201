"""Which event calls which handler. None is an endpoint for programs: those are in `endpoint`."""

import gradio as gr

from playground.ui import (
    appearance,
    causes,
    chunk,
    cuts,
    matters,
    norms,
    prompts,
    robots,
    rollout,
    scenes,
    visits,
)
from playground.ui.episodes import section as episodes
from playground.ui.episodes.store import Recordings
from playground.ui.handlers import Handlers


def wire(
    page: gr.Blocks,
    handlers: Handlers,
    recordings: Recordings,
    link: gr.HTML,
    watch: robots.Watch | None = None,
) -> None:
    """Every event of the page. link: what copies one; watch: on robots, None where none is looked
    at."""
    form, shown, state = handlers.form, handlers.shown, handlers.state
    frame = [
        handlers.strip, *form.inputs, *form.columns, *form.titles, form.absent, form.notes,
        form.examples, form.rewordings, form.scenes.column, form.scenes.seed, *shown.by_policy,
        state.framed,
    ]  # fmt: skip
    result = [handlers.strip, state.key, form.run, form.stop, form.rewordings,
              *shown.live.values(), *shown.drawn]  # fmt: skip
    run = {
        "fn": handlers.run,
        "inputs": [state.key, shown.measure, shown.chunk.wanted, *form.inputs],
        "outputs": result,
        "preprocess": False,
        **appearance.PRIVATE,
    }

    def answer(event, **how):
        """Runs the policies on that event, and shows what they answer."""
        return event(**run | how)

    _wire_loading(page, handlers, frame, result, answer)
    _wire_observation(handlers)
    linked = [
        link,
        form.robot,
        form.prompt,
        form.scenes.seed,
        form.policies,
        *form.options,
        form.cuts,
    ]
    link.select(None, linked, link, js=appearance.script("link.js"), **appearance.PRIVATE)
    chunk.wire(shown.chunk, handlers.plot, state.key)
    cleared = [*frame, state.key, *shown.drawn]
    form.robot.input(
        handlers.choose_robot,
        [form.robot, form.temperature, state.framed],
        cleared,
        **appearance.PRIVATE,
    )
    _wire_prompt(handlers, answer)
    _wire_examples_and_scenes(handlers, answer)
    tab = shown.recipe
    tab.file.upload(
        handlers.open_file,
        [tab.file, *form.pictures],
        [*cleared, shown.measure, tab.opened, tab.again],
        preprocess=False,
        **appearance.PRIVATE,
    )
    answer(
        shown.measure_now.input,
        fn=handlers.measure,
        inputs=[state.key, shown.chunk.wanted],
        trigger_mode="always_last",
    )
    answer(form.cuts.input)
    cuts.wire(shown.cuts, state.key, handlers.results, handlers.worker, handlers.runs)
    judge = {"fn": handlers.judge_again, "inputs": [tab.opened, state.key], **appearance.PRIVATE}
    answer(tab.again.change).then(outputs=[tab.status, tab.opened], **judge)
    rollout.wire(shown.rollout, form, handlers.setups, handlers.worker, handlers.runs)
    episodes.wire(shown.episodes, form, handlers.setups, handlers.worker, handlers.runs, recordings)
    chosen = prompts.wire(shown.board, form, handlers.setups, handlers.worker, handlers.runs)
    answer(chosen.then)
    matters.wire(shown.matters, form, handlers.setups, handlers.worker, handlers.runs)
    causes.wire(
        shown.causes, form, handlers.setups, handlers.worker, handlers.runs, state.key,
        handlers.results,
    )  # fmt: skip
    norms.wire(shown.norms, form, handlers.setups)
    if shown.robot is not None and watch is not None:
        robots.wire(shown.robot, watch, handlers.setups)

        def freeze(event: gr.EventData):
            return handlers.freeze(watch, event)

        answer(shown.robot.view.select(freeze, None, cleared, **appearance.PRIVATE).success)


def _wire_loading(page: gr.Blocks, handlers: Handlers, frame: list, result: list, answer) -> None:
    form, memory, measure = handlers.form, handlers.memory, handlers.shown.measure
    tabs = handlers.shown.tabs
    restored = [*frame, memory.browser, memory.key, measure, tabs, *result]
    loaded = page.load(
        handlers.restore,
        memory.browser,
        list(dict.fromkeys(restored)),
        js=appearance.script("opened_by.js"),
        preprocess=False,
        **appearance.PRIVATE,
    ).then(
        handlers.follow_loading,
        [form.robot, form.policies, form.temperature, form.state, handlers.state.framed],
        frame,
        **appearance.PRIVATE,
    )
    answer(loaded.then, fn=handlers.open)
    visits.wire(memory, handlers.visits, form, measure)
    page.load(None, js=appearance.script("gate.js"), **appearance.PRIVATE)
    page.load(None, js=appearance.script("zoom.js"), **appearance.PRIVATE)
    page.unload(handlers.leave)


def _wire_prompt(handlers: Handlers, answer) -> None:
    """Runs on a click, on Enter, on a reworded prompt and, live, when typing stops: one at a time,
    and of what came meanwhile only the last."""
    form = handlers.form
    answer(form.run.click)
    answer(form.prompt.submit)
    form.stop.click(handlers.stop, None, None, **appearance.PRIVATE)
    follow = "(prompt, value) => ({ ...value, prompt })"
    both = [form.prompt, form.rewordings]
    form.prompt.change(None, both, form.rewordings, js=follow, **appearance.PRIVATE)
    chosen = "(value) => value.chosen"
    reworded = form.rewordings.select(
        None, form.rewordings, form.prompt, js=chosen, **appearance.PRIVATE
    )
    answer(reworded.then)
    answer(form.rewordings.input, fn=handlers.run_typed, trigger_mode="always_last")


def _wire_observation(handlers: Handlers) -> None:
    form = handlers.form
    form.state.input(handlers.judge, [form.robot, form.state], form.state, **appearance.PRIVATE)
    # Only what a person changes: whatever else sets them sets the options, too, and an update
    # on its way would put back what somebody types there meanwhile.
    gr.on(
        [form.policies.input, form.temperature.input],
        handlers.effects,
        [form.robot, form.policies, form.temperature],
        [*form.options, *handlers.shown.every_column],
        **appearance.PRIVATE,
    )
    for picture in form.pictures:
        picture.upload(
            handlers.check_picture, picture, picture, preprocess=False, **appearance.PRIVATE
        )
    first = form.pictures[0]
    judged = [form.scenes.foreign, form.scenes.seed]
    first.change(scenes.judge, [form.robot, first], judged, preprocess=False, **appearance.PRIVATE)


def _wire_examples_and_scenes(handlers: Handlers, answer) -> None:
    form, table = handlers.form, handlers.form.scenes
    filled = [table.seed, form.prompt, form.state, *form.pictures, *form.modes]
    chosen = form.examples.select(handlers.example, form.robot, filled, **appearance.PRIVATE)
    answer(chosen.then, fn=handlers.run_example)
    placed = {
        "outputs": [table.seed, *form.pictures, *form.modes, form.state],
        **appearance.PRIVATE,
    }
    answer(table.new.click(handlers.new_scene, form.robot, **placed).then)
    answer(table.seed.submit(handlers.scene, [form.robot, table.seed], **placed).then)
