"""Which event calls which handler. None is an endpoint for programs: those are in `endpoint`."""

import gradio as gr

from playground.ui import appearance, matters, norms, rollout, scenes, visits
from playground.ui.handlers import Handlers

_OWN = {"api_visibility": "private", "show_progress": "hidden"}


def wire(page: gr.Blocks, handlers: Handlers) -> None:
    """Every event of the page."""
    form, shown, state = handlers.form, handlers.shown, handlers.state
    frame = [
        handlers.strip, *form.inputs, *form.columns, *form.titles, form.examples,
        form.scenes.column, form.scenes.seed, *shown.by_policy, state.framed,
    ]  # fmt: skip
    _wire_loading(page, handlers, frame)
    _wire_observation(handlers)
    show = {
        "fn": handlers.show,
        "inputs": [state.key, state.drawn],
        "outputs": [state.drawn, *shown.all],
        **_OWN,
    }
    plot = {
        "fn": handlers.plot,
        "inputs": [state.key, state.plotted, shown.units, shown.execute],
        "outputs": [state.plotted, shown.plot, shown.words],
        "trigger_mode": "always_last",
        "concurrency_id": "plot",
        "concurrency_limit": 1,  # in the order asked for
        **_OWN,
    }
    run = {
        "fn": handlers.run,
        "inputs": [state.key, shown.measure, *form.inputs],
        "outputs": [handlers.strip, state.key, form.run, form.stop, shown.result,
                    *shown.live.values()],
        "preprocess": False,
        **_OWN,
    }  # fmt: skip

    def answer(event, **how):
        """Runs the policies on that event, and shows what they answer. The plot comes last,
        when what holds it is shown again."""
        return event(**run | how).then(**show).then(**plot)

    gr.on([shown.units.change, shown.execute.change], **plot)
    cleared = [*frame, state.key, *shown.cleared]
    form.robot.input(handlers.choose_robot, form.robot, cleared, **_OWN).then(**plot)
    answer(form.run.click)
    answer(form.prompt.submit)
    form.stop.click(handlers.stop, None, None, **_OWN)
    _wire_examples_and_scenes(handlers, answer)
    tab = shown.recipe
    tab.file.upload(
        handlers.open_file,
        [tab.file, *form.pictures],
        [*cleared, shown.measure, tab.opened, tab.again],
        preprocess=False,
        **_OWN,
    ).then(**plot)
    judge = {"fn": handlers.judge_again, "inputs": [tab.opened, state.key], **_OWN}
    answer(tab.again.change).then(outputs=[tab.status, tab.opened], **judge)
    rollout.wire(shown.rollout, form, handlers.setups, handlers.worker, handlers.runs)
    matters.wire(shown.matters, form, handlers.setups, handlers.worker, handlers.runs)
    norms.wire(shown.norms, form, handlers.setups)


def _wire_loading(page: gr.Blocks, handlers: Handlers, frame: list) -> None:
    form, memory, measure = handlers.form, handlers.memory, handlers.shown.measure
    page.load(
        handlers.restore,
        memory.browser,
        [*frame, memory.browser, memory.key, measure],
        preprocess=False,
        **_OWN,
    ).then(
        handlers.follow_loading,
        [form.robot, form.policies, form.temperature, handlers.state.framed],
        frame,
        **_OWN,
    ).then(handlers.judge, [form.robot, form.state], form.state, **_OWN)
    visits.wire(memory, handlers.visits, form, measure)
    page.load(None, js=appearance.script("zoom.js"), **_OWN)
    page.unload(handlers.leave)


def _wire_observation(handlers: Handlers) -> None:
    form = handlers.form
    form.state.input(handlers.judge, [form.robot, form.state], form.state, **_OWN)
    gr.on(
        [form.policies.change, form.temperature.change],
        handlers.effects,
        [form.robot, form.policies, form.temperature],
        form.options,
        **_OWN,
    )
    for picture in form.pictures:
        picture.upload(handlers.check_picture, picture, picture, preprocess=False, **_OWN)
    first = form.pictures[0]
    judged = [form.scenes.foreign, form.scenes.seed]
    first.change(scenes.judge, [form.robot, first], judged, preprocess=False, **_OWN)


def _wire_examples_and_scenes(handlers: Handlers, answer) -> None:
    form, table = handlers.form, handlers.form.scenes
    filled = [table.seed, form.prompt, form.state, *form.pictures, *form.modes]
    chosen = form.examples.select(handlers.example, form.robot, filled, **_OWN)
    answer(chosen.then, fn=handlers.run_example)
    placed = {"outputs": [table.seed, form.pictures[0], form.modes[0], form.state], **_OWN}
    answer(table.new.click(handlers.new_scene, form.robot, **placed).then)
    answer(table.seed.submit(handlers.scene, [form.robot, table.seed], **placed).then)
