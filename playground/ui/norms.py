"""The norm stats in "What the models receive": what `playground.analysis.norm_check` finds in
them, and where the given state lies."""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any, Literal

import gradio as gr

from playground.analysis.norm_check import DimensionCheck, NormCheck, check
from playground.robots.norm_stats import BOUNDS
from playground.robots.robot import check_state
from playground.trace import PolicyInfo
from playground.ui.observation import Form
from playground.ui.setup import Setup, Setups, numbers
from playground.views import theme

_WAITING = "<p class='waiting'>The policies are being loaded.</p>"
_TITLES: dict[Literal["state", "actions"], str] = {"state": "State", "actions": "Actions"}


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    tab: gr.Tab
    report: gr.HTML


def build(tab: gr.Tab) -> Panel:
    """To be called inside the tab."""
    gr.HTML("<h2>Norm stats</h2>", elem_classes="section", apply_default_css=False)
    return Panel(tab, gr.HTML(_WAITING, apply_default_css=False, elem_id="norms"))


def wire(panel: Panel, form: Form, setups: Setups) -> None:
    def show(robot, state):
        return page(setups.of(robot), state["values"])

    gr.on(
        [panel.tab.select, form.state.change],
        show,
        [form.robot, form.state],
        panel.report,
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
    )


def answer(
    setup: Setup, policies: Sequence[str] | None, state: Sequence[float] | None
) -> dict[str, dict[str, Any]]:
    """The reports as plain values, by policy. Raises ValueError for policies that are not there or
    not yet, and for a state that cannot be."""
    if not setup.infos:
        raise ValueError("the policies are still being loaded; ask when the page says so")
    chosen = setup.policies if policies is None else policies
    if unknown := set(chosen) - set(setup.infos):
        raise ValueError(f"no loaded policy is called {', '.join(sorted(unknown))}")
    state = setup.robot.resting_state if state is None else state
    values = check_state(setup.robot, numbers(setup.robot, state))
    found = {}
    for name in chosen:
        info, report = setup.infos[name], check(setup.infos[name], setup.robots[name], values)
        policy = {"badge": info.badge, "notice": info.notice, "sound": report.sound}
        found[name] = policy | dataclasses.asdict(report)
    return found


# --- the page's -------------------------------------------------------------------------------


def page(setup: Setup, given: Sequence[float | str]) -> str:
    """HTML of a report for each policy; a state that cannot be is left out."""
    if not setup.infos:
        return _WAITING
    try:
        values = check_state(setup.robot, numbers(setup.robot, given))
    except ValueError:
        values = None
    parts = []
    for name, info in setup.infos.items():
        parts.append(_report(info, check(info, setup.robots[name], values)))
    return "".join(parts)


def _report(info: PolicyInfo, report: NormCheck) -> str:
    remarks = [_text(remark) for remark in report.remarks]
    for part, title in _TITLES.items():
        # Dimensions of which the same is said share a line.
        said: dict[str, list[str]] = {}
        for row in report.rows:
            for remark in row.remarks if row.part == part else ():
                said.setdefault(remark, []).append(row.name)
        remarks += [
            f"{title}, {_text(theme.listed(names))}: {_text(remark)}"
            for remark, names in said.items()
        ]
    listed = "".join(f"<li>{remark}</li>" for remark in remarks)
    listed = (
        f"<ul class='remarks'>{listed}</ul>" if listed else "<p class='sound'>Nothing is odd.</p>"
    )
    title = f"<h3>{_text(info.title)} <span>{_text(info.badge)}</span></h3>"
    tables = "".join(_table(report, part, info) for part in _TITLES)
    rule = _text(f"{report.rule}. {report.padding}")
    return (
        f"<section class='norms'>{title}<p class='fine'>{rule}</p>{listed}"
        f"<details><summary>All dimensions</summary>{tables}</details></section>"
    )


def _table(report: NormCheck, part: Literal["state", "actions"], info: PolicyInfo) -> str:
    rows = [row for row in report.rows if row.part == part]
    heads = ["dimension", "unit", "mean", "std", *BOUNDS[info.method(part)]]
    if part == "state":
        heads += ["as counted", "for the model"]
    head = "".join(f"<th scope='col'>{text}</th>" for text in heads)
    lines = "".join(f"<tr{_mark(row)}>{_cells(row, len(heads))}</tr>" for row in rows)
    return (
        f"<table><caption>{_TITLES[part]}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{lines}</tbody></table>"
    )


def _mark(row: DimensionCheck) -> str:
    return " class='odd'" if row.remarks else ""


def _cells(row: DimensionCheck, count: int) -> str:
    numbers = (row.mean, row.std, row.q01, row.q99, row.value, row.normalised)
    cells = ["" if x is None else f"{x:.4g}" for x in numbers][: count - 2]
    name = f"<th scope='row'>{_text(row.name)}</th><td>{_text(row.unit)}</td>"
    return name + "".join(f"<td>{cell}</td>" for cell in cells)


def _text(text: str) -> str:
    return html.escape(theme.plain(text))
