"""For people new to this: how to read each tab, words that explain themselves, and a tour."""

import html
import re

import gradio as gr

from playground.ui import appearance

# Words of the field, said once more where the pointer or the keyboard rests on them.
WORDS = {
    "slot": "A camera input of the model. A robot fills those that it has a camera for.",
    "prefix": "What the model reads before it answers: camera patches and the prompt's tokens.",
    "chunk": "The actions that one answer holds: the next second or so of the robot's motion.",
    "Euler step": "One step of the solver that carries noise (t = 1) to actions (t = 0).",
    "horizon": "How many actions a chunk has.",
    "mask": "A rule: which token may attend to which.",
}
_PI0 = ("pi0, arXiv 2410.24164", "https://arxiv.org/abs/2410.24164")
_FAST = ("FAST, arXiv 2501.09747", "https://arxiv.org/abs/2501.09747")
_WEIGHT = ("Attention is not Explanation, arXiv 1902.10186", "https://arxiv.org/abs/1902.10186")
_WORDING = ("LIBERO-PRO, arXiv 2510.03827", "https://arxiv.org/abs/2510.03827")
_PATCHING = ("causal tracing, arXiv 2202.05262", "https://arxiv.org/abs/2202.05262")
_SUCCESS = ("SIMPLER, arXiv 2405.05941", "https://arxiv.org/abs/2405.05941")
_OPENPI = "https://github.com/Physical-Intelligence/openpi/blob/main"
_NORM = ("openpi, norm_stats.md", f"{_OPENPI}/docs/norm_stats.md")

# By tab: at most 60 words, and where they are from.
READING: dict[str, tuple[str, tuple[str, str]]] = {
    "overview": (
        "A row is a policy's answer to the picture and prompt. pi0 starts from noise and takes an "
        "Euler step ten times; pi0-FAST writes tokens that decode to a chunk. Drag the scrubber: "
        "every panel shows the same moment. Faded rows of the mask did not run at it.",
        _PI0,
    ),
    "actions": (
        "A panel is a dimension of the chunk over its horizon, in the robot's units. Below, pi0's "
        "thin line is x_t and the thick one its estimate of the end, x_t - t v_t. A token of "
        "pi0-FAST is a piece of a cosine transform of the whole chunk, so one token can move "
        "every step.",
        _FAST,
    ),
    "attention": (
        "The mask is a rule, the same for every picture: a coloured cell says that the row's "
        "token may attend to the column's. The prefix never sees the actions. Choose “click to "
        "cut” and click a block: the policies run without that connection. Measured weights say "
        "how much was used; weight is not cause.",
        _WEIGHT,
    ),
    "prompts": (
        "Every card is another prompt on the same picture with the same noise; dashed is the "
        "first prompt's path. The number is how far the chunk moves, in % of each dimension's "
        "range, and in multiples of what another seed alone does. Below one, the policy does not "
        "tell the prompts apart.",
        _WORDING,
    ),
    "causes": (
        "Two prompts run on one picture with the same noise. The second runs again, but at one "
        "place (a row) in one layer (a column) it reads what the first one left there. Where the "
        "first prompt's chunk comes back, the difference acts. Places that stand in for each "
        "other show less than they carry together.",
        _PATCHING,
    ),
    "rollout": (
        "The policy acts: it sees the pictures, plans a chunk, executes some steps, and looks "
        "again. A chunk that looks right may still miss: small errors add up, and only acting "
        "shows it. The verdict is the simulator's, by where the cubes end.",
        _SUCCESS,
    ),
    "details": (
        "Pictures are scaled to the model's size and put into a slot each; an empty slot is "
        "masked or black. State and actions are scaled by norm stats of the training data: wrong "
        "ones give smooth, wrong motion. The run file holds all that repeats this run.",
        _NORM,
    ),
}

# Where each step of the tour stands (the first element that is there), its heading and its words.
TOUR = [
    [
        "#picture-0, #examples",
        "What goes in",
        "A camera picture, the robot's state and the prompt on top. Click an example or a new "
        "scene to change them.",
    ],
    [
        "#overview [data-family='pi0'] .making, #overview [data-family='pi05'] .making, #overview",
        "How noise becomes a path",
        "pi0 starts from random numbers (t = 1) and moves them step by step to actions (t = 0). "
        "Press play: the path is the estimate so far.",
    ],
    [
        "#overview [data-family='pi0_fast'] .making, #overview",
        "How FAST writes numbers as tokens",
        "pi0-FAST writes the chunk like text: each token is a piece of a cosine transform. The "
        "darker a token, the surer the model was.",
    ],
    [
        "#overview .mask",
        "Who may look at whom",
        "Rows are tokens that look, columns those they may look at. Pictures and prompt never see "
        "the actions. Click Mask for every cell.",
    ],
    [
        "#rewordings, #prompt",
        "What the prompt changes",
        "Click another colour or verb, or type: the paths move while you type. The tab Prompts "
        "compares many prompts at once.",
    ],
]

_TOUR = appearance.component("tour.js")


def tour() -> gr.HTML:
    return gr.HTML(TOUR, **_TOUR, elem_id="tour")


def how_to_read(tab: str) -> gr.HTML:
    """The tab's words with their source, closed until somebody opens them."""
    text, (source, link) = READING[tab]
    return gr.HTML(
        "<details class='how'><summary>How to read this</summary>"
        f"<p>{explained(text)} <a href='{link}' target='_blank' rel='noopener'>{source}</a></p>"
        "</details>",
        apply_default_css=False,
    )


def explained(text: str) -> str:
    """HTML of a text, with each of WORDS explained where it first stands."""
    text = html.escape(text, quote=False)
    for word, meaning in WORDS.items():
        tip = html.escape(meaning)
        dfn = f"<dfn tabindex='0' data-tip='{tip}' aria-description='{tip}'>\\g<0></dfn>"
        text = re.sub(rf"(?<![\w'-]){word}(?![\w-])(?![^<]*</dfn>)", dfn, text, count=1)
    return text
