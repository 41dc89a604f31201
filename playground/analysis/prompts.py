"""Several prompts on one observation, answered with the same noise: what a policy distinguishes.

    answers = [answer(policy, raw, Options(), prompt) for prompt in prompts]
    distances(np.stack([a.shares for a in answers]))  # [P, P], % of range

The measure is that of `playground.analysis.sensitivity`: the mean over steps and dimensions of the
absolute difference of two chunks, in % of each dimension's range in the norm stats. The *spread*
between seeds is the same between chunks of one prompt from different noise.

Shapes: P prompts, H horizon, D the robot's action dimensions.
"""

import dataclasses
import itertools
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from playground import codec
from playground.analysis.sensitivity import share_of_range
from playground.analysis.variants import rewordings, variants
from playground.robots import conversion
from playground.robots.robot import Robot
from playground.serving.events import Phase, Result
from playground.trace import Options, RawObservation

MAX_PROMPTS = 32
NOISES = 4  # of the first prompt, for the spread between seeds
_MOST_WORDS = 12  # of a prompt that the headline quotes
_DEADLINE_S = 900.0  # another number of samples is another program to compile


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class PromptsRequest:
    """What to compare.

    policies: names, each once
    observations: by policy; their prompts have no meaning here
    options: of every run, with the noise that all prompts share
    prompts: up to MAX_PROMPTS; the first one is what the others are compared with
    """

    policies: tuple[str, ...]
    observations: dict[str, RawObservation]
    options: Options
    prompts: tuple[str, ...]


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class PromptAnswer:
    """One policy's chunk for one prompt.

    actions: float32 [H, D], robot units; None with a failure
    shares: float32 [H, D], in % of each dimension's range; None with a failure
    spread: between seeds, % of range; None where it was not measured
    failure: why there is no chunk, or None
    """

    policy: str
    prompt: str
    actions: np.ndarray | None = None
    shares: np.ndarray | None = None
    spread: float | None = None
    failure: str | None = None


def compare(policies: Mapping[str, object], request: PromptsRequest) -> Generator[Phase | Result]:
    """A kind of job for `playground.serving.worker`: a Result with a PromptAnswer for each prompt
    and policy. Raises ValueError for names and prompts that are not taken."""
    if not request.policies or (missing := set(request.policies) - set(policies)):
        named = ", ".join(sorted(missing)) if request.policies else "nothing"
        raise ValueError(f"no policy is called {named}; loaded: {', '.join(policies)}")
    if not 1 <= len(request.prompts) <= MAX_PROMPTS:
        raise ValueError(f"{len(request.prompts)} prompts came; 1 to {MAX_PROMPTS} are taken")
    for place, prompt in enumerate(request.prompts):
        for name in request.policies:
            yield Phase(name, f"“{prompt}”", _DEADLINE_S)
            raw, noises = request.observations[name], NOISES if place == 0 else 1
            found = answer(policies[name], raw, request.options, prompt, noises)
            yield Result(dataclasses.replace(found, policy=name))


def answer(
    policy, raw: RawObservation, options: Options, prompt: str, noises: int = 1
) -> PromptAnswer:
    """The policy's chunk for the observation with that prompt.

    policy: a playground.policies.base.Policy. noises: chunks for the spread between seeds, from
    `options.seed` on, where the policy draws any; 1 measures none. What cannot be answered is a
    failure in the result. Runs whole compiled loops, a third of a watched run's time.
    """
    info = policy.info
    flow = info.family != "pi0_fast"
    options = dataclasses.replace(options, num_samples=noises if flow else 1, attention=False)
    try:
        share = share_of_range(info)
        chunks, failure = policy.actions(dataclasses.replace(raw, prompt=prompt), options)
    except ValueError as error:
        return PromptAnswer(info.name, prompt, failure=str(error))
    if chunks is None:
        failure = f"the tokens did not decode: {failure}"
        return PromptAnswer(info.name, prompt, failure=failure)
    shares = chunks * share  # [N, H, D]
    actions = conversion.from_model(
        policy.robot, chunks[0], raw.state, info.action_stats, info.method("actions")
    )
    pairs = list(itertools.combinations(shares, 2))
    return PromptAnswer(
        info.name,
        prompt,
        actions=actions.astype(np.float32),
        shares=shares[0].astype(np.float32),
        spread=float(np.mean([_difference(a, b) for a, b in pairs])) if pairs else None,
    )


def distances(shares: np.ndarray) -> np.ndarray:
    """Of chunks [P, H, D] in % of range: float64 [P, P], how much each differs from each."""
    return np.array([[_difference(a, b) for b in shares] for a in shares])


def clustered(distances: np.ndarray) -> list[int]:
    """An order of prompts [P] that puts those of similar chunks side by side."""
    if len(distances) < 3:
        return list(range(len(distances)))
    import scipy.cluster.hierarchy  # 0.1 s, which no start needs
    import scipy.spatial.distance

    condensed = scipy.spatial.distance.squareform(distances, checks=False)
    tree = scipy.cluster.hierarchy.linkage(condensed, "average", optimal_ordering=True)
    return scipy.cluster.hierarchy.leaves_list(tree).tolist()


def useful_prompts(raw: RawObservation, robot: Robot) -> tuple[tuple[str, str], ...]:
    """(label, prompt) of a set to begin with: the observation's own, a paraphrase, other objects
    and verbs, each word left out, other tasks, shuffled, garbled, empty."""
    found, _ = variants(raw, robot, None, groups=("prompt",))
    prompts = {raw.prompt: "as given"}
    reworded = rewordings(raw.prompt, robot.name)
    for label, prompt in [*reworded, *((v.name, v.changed.prompt) for v in found)]:
        prompts.setdefault(prompt, label)
    return tuple((label, prompt) for prompt, label in prompts.items())[:MAX_PROMPTS]


def headline(answers: Sequence[PromptAnswer], labels: Mapping[str, str], *, title: str) -> str:
    """At most 25 words on what a policy distinguishes, from one policy's answers alone; the first
    one is what the others are compared with. labels: by prompt, as `useful_prompts` gives them."""
    first, *others = answers
    if first.shares is None:
        return f"{title} gave no chunk for the first prompt."
    limit = 1.0 if first.spread is None else first.spread
    change = {
        labels.get(found.prompt, found.prompt): _difference(found.shares, first.shares)
        for found in others
        if found.shares is not None
    }
    words = {k.removeprefix("without "): v for k, v in change.items() if k.startswith("without ")}
    heard = [word for word in sorted(words, key=lambda w: -words[w]) if words[word] > limit][:3]
    ignored = [word for word in words if words[word] <= limit][:3]
    parts = []
    if heard:
        parts.append(f"listens to {_listed(heard)}")
    if ignored:
        parts.append(f"ignores {_listed(ignored)}")
    if "shuffled" in change:
        matters = change["shuffled"] > limit
        parts.append("word order matters" if matters else "word order does not matter")
    if not parts and change:
        most = max(change, key=change.__getitem__)
        parts.append(f"changes most with “{_shortened(most)}”, by {change[most]:.1f} % of range")
    return f"{title} {'; '.join(parts)}." if parts else f"{title}: one prompt, nothing to compare."


def _shortened(prompt: str) -> str:
    words = prompt.split()
    return prompt if len(words) <= _MOST_WORDS else f"{' '.join(words[:_MOST_WORDS])} …"


def _listed(words: Sequence[str]) -> str:
    quoted = [word if word.startswith("“") else f"“{word}”" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over steps and dimensions of two chunks [H, D] in % of range; a dimension that has no
    range is left out."""
    return float(np.nanmean(np.abs(np.asarray(a, np.float64) - b)))
