"""The data's own statistics against the norm stats of the policies that are loaded."""

import dataclasses
import html
from collections.abc import Callable

import gradio as gr

from playground.analysis import norm_check
from playground.analysis.norm_check import Compared
from playground.datasets.statistics import OwnStats, aggregation_note
from playground.trace import PolicyInfo
from playground.ui import appearance, errors
from playground.ui.episodes.asked import Asked
from playground.views import theme

_MOST_EPISODES = 10  # as the command takes by itself
_TITLES = {"state": "State", "actions": "Actions"}


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    start: gr.Button
    report: gr.HTML


def build() -> Part:
    """To be called inside the tab."""
    gr.HTML("<h2>Your data against the norm stats</h2>", elem_classes="section",
            apply_default_css=False)  # fmt: skip
    start = gr.Button("Compare statistics", scale=0, min_width=190, elem_id="own-stats")
    return Part(start, gr.HTML("", apply_default_css=False, elem_id="own-stats-report"))


def outputs(part: Part) -> list:
    return [part.report]


def cleared(part: Part) -> dict:
    return {part.report: ""}


def wire(part: Part, question: list, asked: Callable[..., Asked]) -> None:
    """question: the components that `asked` is given the values of."""

    @errors.for_page
    def compare(*values):
        return page(asked(*values))

    own = appearance.PRIVATE
    part.start.click(compare, question, part.report, **own)


def page(question: Asked) -> str:
    """HTML of the comparison for each policy that the dataset fits."""
    if not question.fit.matches:
        question.fit.check()
    dataset = question.opened.dataset
    count = min(len(dataset), _MOST_EPISODES)
    parts = []
    for name, match in question.fit.matches.items():
        info = question.setup.infos[name]
        own = OwnStats(info, question.setup.robots[name], match)
        left_out = []
        for index in range(count):
            try:
                own.add(question.opened.episode(index))
            except ValueError as error:
                left_out.append(f"Episode {index} is left out: {error}")
        if not own.episodes:
            raise ValueError(" ".join(left_out))
        notes = [_about(own.episodes, len(dataset)), *left_out]
        if own.episodes == len(dataset):
            notes += filter(None, [aggregation_note(dataset, own)])
        parts.append(_report(info, norm_check.against_data(info, own.stats()), notes))
    return "".join(parts)


def _about(episodes: int, of: int) -> str:
    count = f"all {of} episodes" if episodes == of else f"{episodes} of {of} episodes"
    return (
        f"Over the rows of {count}, in the model's terms: offsets from each chunk's own state "
        "where the policy predicts offsets."
    )


def _report(info: PolicyInfo, rows: tuple[Compared, ...], notes: list[str]) -> str:
    said: dict[str, list[str]] = {}
    for row in rows:
        for remark in row.remarks:
            said.setdefault(f"{_TITLES[row.part]}, {row.name}: {remark}", [])
    remarks = "".join(f"<li>{_text(remark)}</li>" for remark in said)
    found = f"<ul class='remarks'>{remarks}</ul>" if remarks else (
        "<p class='sound'>Nothing is odd: the data lie where the checkpoint's did.</p>"
    )  # fmt: skip
    head = "".join(
        f"<th scope='col'>{text}</th>"
        for text in ("dimension", "unit", "mean", "your mean", "std", "your std", "q01", "your q01",
                     "q99", "your q99")
    )  # fmt: skip
    tables = ""
    for part, title in _TITLES.items():
        lines = "".join(_line(row) for row in rows if row.part == part)
        tables += (
            f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{lines}</tbody></table>"
        )
    about = "".join(f"<p class='fine'>{_text(note)}</p>" for note in notes)
    return (
        f"<section class='norms'><h3>{_text(info.title)} <span>{_text(info.badge)}</span></h3>"
        f"{about}{found}<details><summary>All dimensions</summary>{tables}</details></section>"
    )


def _line(row: Compared) -> str:
    numbers = [x for pair in zip(row.checkpoint, row.data, strict=True) for x in pair]
    cells = "".join(f"<td>{'' if x is None else f'{x:.4g}'}</td>" for x in numbers)
    odd = " class='odd'" if row.remarks else ""
    return f"<tr{odd}><th scope='row'>{_text(row.name)}</th><td>{_text(row.unit)}</td>{cells}</tr>"


def _text(text: str) -> str:
    return html.escape(theme.plain(text))
