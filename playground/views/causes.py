"""Causes: where the difference between two prompts acts, and where a changed run leads."""

from collections.abc import Mapping, Sequence

import numpy as np

from playground import cuts
from playground.analysis.causal import CausalTrace, Knockout, Occlusion, PatchGroup, headline
from playground.analysis.variants import slot_label
from playground.robots.builtin import TABLETOP
from playground.robots.transforms import resize_with_pad
from playground.tabletop import camera, kinematics
from playground.trace import PolicyInfo, RawObservation
from playground.views import paths, theme

# gr.HTML(value, **COMPONENT) with value None or `payload(...)`; gr.HTML(value, **PATHS) with None
# or `lines(...)`; gr.HTML(value, **CUT_PATHS) with None or {key: of the run that it is drawn for,
# paths: `cut_lines(...)` of each policy}.
COMPONENT = theme.component("causes_parts.js", "causes.js")
OCCLUSION = theme.component("causes_parts.js", "occlusion.js")  # None or `occlusion_payload(...)`
PATHS = theme.component("changed_path.js", "causes_path.js")
CUT_PATHS = theme.component("changed_path.js", "cut_paths.js")

SIDE = 224  # pixels of the pictures that patches and paths are drawn on


def payload(
    reports: Mapping[str, CausalTrace],
    pictures: Mapping[str, Mapping[str, np.ndarray]],
    things: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """What the tab draws, as plain JSON.

    reports: by policy, as far as they are. pictures: by policy and slot, the square picture that
    the patches lie on. things: by policy, what the patch shows that recovers most.

    policies: {name, policy, prompt, counterfactual, headline, effect, columns, rows, maps, read,
    notes, failure, done, of}; a row has name, label, kind, values and intervals, one for each of
    the columns; a map has slot, label, picture, side, values and, where not all were run, exact:
    whether each was; the others are estimates.
    """
    things = things or {}
    return {
        "policies": [
            _policy(report, pictures.get(name, {}), things.get(name, ""))
            for name, report in reports.items()
        ]
    }


def _policy(
    report: CausalTrace, pictures: Mapping[str, np.ndarray], thing: str
) -> dict[str, object]:
    layers = len(report.recovered[0]) - 1 if report.recovered else 0
    rows = zip(report.groups, report.recovered, report.intervals, strict=True)
    return {
        "name": report.policy,
        "policy": theme.identity(report),
        "prompt": theme.plain(report.prompt),
        "counterfactual": theme.plain(report.counterfactual),
        "headline": theme.plain(headline(report, thing)),
        "effect": None if report.effect is None else _effect(report),
        "columns": [*(f"layer {i + 1}" for i in range(layers)), "all layers"],
        "rows": [
            {
                "name": group.name,
                "label": theme.plain(_label(group)),
                "kind": group.kind,
                "changed": group.kind == "word" and group.differs,
                "values": list(values),
                "intervals": [None if i is None else list(i) for i in intervals],
            }
            for group, values, intervals in rows
        ],
        "maps": [
            _map(slot, values, pictures[slot])
            | {"exact": [ran for row in report.exact.get(slot, ()) for ran in row]}
            for slot, values in report.patches.items()
            if slot in pictures
        ],
        "read": {"image": list(report.read_image), "text": list(report.read_text)},
        "notes": [theme.plain(note) for note in (*report.notes, *report.warnings)],
        "plan": report.plan,
        "failure": theme.plain(report.failure or ""),
        "done": report.done,
        "of": report.of,
    }


def _effect(report: CausalTrace) -> str:
    """How far the chunks are apart, in words."""
    of = " of log-likelihood" if report.unit == "nats" else ""
    return f"{abs(report.effect or 0.0):.1f} {report.unit}{of}"


def _map(slot: str, values: Sequence, picture: np.ndarray) -> dict[str, object]:
    return {
        "slot": slot,
        "label": slot_label(slot),
        "picture": theme.picture(picture),
        "side": len(values),
        "values": [value for row in values for value in row],
    }


def occlusion_payload(
    reports: Mapping[str, Occlusion], pictures: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, object]:
    """What hiding each patch does beside the measured attention, as plain JSON.

    policies: {name, policy, words, unit, maps, failure, done, of}; a map is as in `payload`, with
    the change when a patch is hidden as its values, and `attention`, the weight on each patch.
    """
    return {
        "policies": [
            {
                "name": name,
                "policy": theme.identity(report),
                "words": theme.plain(occlusion_words(report)),
                "unit": report.unit,
                "maps": [
                    _map(slot, values, pictures[name][slot])
                    | {"attention": [w for row in report.attention[slot] for w in row]}
                    for slot, values in report.change.items()
                    if slot in pictures.get(name, {})
                ],
                "failure": theme.plain(report.failure or ""),
                "done": report.done,
                "of": report.of,
            }
            for name, report in reports.items()
        ]
    }


def occlusion_words(report: Occlusion) -> str:
    """Whether where a policy looks is where a hidden patch matters."""
    if report.done < report.of:
        return f"{report.done} of {report.of} patches were hidden so far."
    found = report.rank_correlation
    if found is None:
        return "Hidden one by one, the patches are all alike, so their order says nothing."
    how = (
        "Attention shows which patches matter"
        if found >= 0.7
        else "Attention shows only roughly which patches matter"
        if found >= 0.3
        else "Attention does not show which patches matter"
    )
    return f"{how}: the rank correlation of the two maps is {found:.2f}.".replace("-", "−")


def _label(group: PatchGroup) -> str:
    if group.kind in ("image", "hidden camera"):
        hidden = "" if group.kind == "image" else ", masked"
        return f"picture: {slot_label(group.name)}{hidden}"
    if group.kind != "word":
        return group.name
    if not group.differs:
        return f"“{group.own}”"
    return f"“{group.own or '∅'}” for “{group.other or '∅'}”"


def lines(
    info: PolicyInfo,
    what: str,
    state: Sequence[float] | np.ndarray,
    chunks: Mapping[str, np.ndarray | None],
    picture: np.ndarray | None,
    words: str,
) -> dict[str, object]:
    """Where changed runs lead, on the picture of the table's camera.

    what: the change, in a few words. state: float [14], robot units, where the paths begin.
    chunks: by name, float [H, 14] or None where there is none. picture: None where no paths are
    known. words: what was measured.
    """
    found = {name: chunk for name, chunk in chunks.items() if chunk is not None}
    drawn = picture if info.robot == TABLETOP.name and found else None
    horizon = max((len(chunk) for chunk in found.values()), default=0)
    line = np.full((len(chunks), horizon + 1, 2), np.nan)
    if drawn is not None:
        first = next(iter(found.values()))
        arm = kinematics.moving_arm(np.array(state), first)
        for place, chunk in enumerate(chunks.values()):
            if chunk is not None:
                line[place] = paths.pixels(np.array(state), chunk, len(drawn))[arm]
    return {
        "policy": theme.identity(info),
        "what": theme.plain(what),
        "names": [
            theme.plain(name if chunk is not None else f"{name}: no chunk that decodes")
            for name, chunk in chunks.items()
        ],
        "picture": None if drawn is None else theme.picture(drawn),
        "line": theme.packed(np.round(line, 1)),
        "words": theme.plain(words),
    }


def cut_lines(info: PolicyInfo, found: Knockout, raw: RawObservation) -> dict[str, object]:
    """Where a run with cut connections leads, beside the same run without them."""
    if found.failure is not None:
        words = f"No comparison: {found.failure}"
    else:
        words = f"The chunk moves by {found.change:.1f} % of range"
        if found.interval is not None:
            words += f" (95 %: {found.interval[0]:.1f} to {found.interval[1]:.1f})"
        words += ", on average over its steps and dimensions."
    chunks = {"with every connection": found.before, "with these cuts": found.after}
    what = f"Cut: {cuts.in_words(found.cuts)}"
    return lines(info, what, raw.state, chunks, table_picture(raw), words)


def pictures(raw: RawObservation) -> dict[str, np.ndarray]:
    """By slot, the square picture that patches are drawn on."""
    return {slot: resize_with_pad(image, SIDE, SIDE) for slot, image in raw.images.items()}


def table_picture(raw: RawObservation) -> np.ndarray | None:
    """The picture of the table that paths are drawn on; None where none is of the table."""
    found = [picture for picture in raw.images.values() if camera.shows_table(picture)]
    return resize_with_pad(found[0], SIDE, SIDE) if found else None
