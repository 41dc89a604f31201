"""Where a run stands, by its events; and the strip on top of the page that says so."""

import dataclasses
from collections.abc import Sequence

from playground.serving.events import Done, Event, Failed, Finished, Phase, Queued, Step, TokenEvent
from playground.trace import PolicyInfo, Trace
from playground.ui import appearance, results
from playground.ui.setup import Setup
from playground.views import theme

# gr.HTML(value, **COMPONENT) with `Progress.payload()`.
COMPONENT = appearance.component("strip.js")

_CACHED = "From the cache: this example ran before."

# What `playground.checkpoints.load.load` says of a policy; shown to those who wait meanwhile.
_LOADING = ("downloading", "loading", "compiling")


@dataclasses.dataclass(slots=True)
class _Policy:
    state: str = "idle"  # idle, waiting, running, done, failed, stopped
    line: str = ""
    share: float | None = None
    trace: Trace | None = None
    failure: str = ""
    live: dict | None = None


class Progress:
    """Takes the events of one run; `traces` fills up on the way. cached: nothing ran, the answers
    were there."""

    def __init__(
        self, setup: Setup, policies: Sequence[str] = (), loading: str = "", *, cached: bool = False
    ):
        self.cached = cached
        self._setup = setup
        self._policies = {name: _Policy() for name in setup.policies}
        self._running = tuple(policies)
        self._loading = loading
        self._place: Queued | None = None
        self._failure = ""
        self._down = False
        self._stopped = False
        self._key = ""
        for name in policies:
            self._policies[name].state = "waiting"

    def know(self, setup: Setup) -> None:
        """The policies have been loaded meanwhile."""
        self._setup, self._loading = setup, ""

    @property
    def traces(self) -> dict[str, Trace]:
        return {name: p.trace for name, p in self._policies.items() if p.trace is not None}

    @property
    def pending(self) -> list[str]:
        """Policies that were asked and have not answered yet."""
        return [n for n, p in self._policies.items() if p.state in ("waiting", "running")]

    @property
    def failures(self) -> list[str]:
        failures = [
            f"{self._title(n)}: {p.failure}" for n, p in self._policies.items() if p.failure
        ]
        return [self._failure] * bool(self._failure) + failures

    def take(self, event: Event) -> bool:
        """Returns whether this is news that should show at once."""
        match event:
            case Queued():
                self._place = event
                return True
            case Phase(policy=name, phase=phase):
                if _is_loading(phase) or name not in self._policies:
                    self._loading = f"{phase} {name}"
                else:
                    self._advance(name, _plain(phase), None, None)
                return True
            case Step(policy=name, step=step, of=of, t=t, actions=actions):
                text = f"step {step} of {of} · t {t:.2f} · τ {1 - t:.2f}"
                self._advance(name, text, step / of, actions)
            case TokenEvent(policy=name, index=index, of=of, token=token, partial=partial):
                text = f"token {index + 1} of at most {of} · {token.text!r}"
                self._advance(name, text, (index + 1) / of, partial)
            case Done(policy=name, trace=trace):
                self._policies[name] = _Policy("done", trace=trace)
                return True
            case Failed(policy=None, message=message):
                self._failure = message
                self._end("failed")
                return True
            case Failed(policy=str() as name, message=message):
                self._policies[name] = _Policy("failed", failure=message)
                return True
            case Finished():
                self._place = None
                return True
        return False

    def stop(self) -> None:
        """The visitor ended it."""
        self._stopped = True
        self._end("stopped")

    def fail(self, message: str) -> None:
        """No policy can answer, now or later."""
        self._failure, self._down = message, True

    def keep(self, key: str) -> None:
        """The key that the traces are kept under, for links."""
        self._key = key

    def _end(self, state: str) -> None:
        self._place = None
        for name in self._running:
            if self._policies[name].state in ("waiting", "running"):
                self._policies[name] = _Policy(state)

    def _advance(self, name, text, share, actions) -> None:
        self._place, self._loading = None, ""
        policy = self._policies[name]
        policy.state, policy.line, policy.share = "running", text, share
        if actions is not None and name in self._setup.infos:
            info = self._setup.infos[name]
            policy.live = {
                "policy": theme.identity(info),
                "line": text,
                "dims": theme.dimensions(info.actions),
                "hz": info.control_hz,
                "actions": theme.packed(actions),
            }

    def live(self) -> dict[str, dict | None]:
        """By policy, the chunk as it stands, for `live.js`; None for who is not running."""
        return {
            name: policy.live if policy.state == "running" else None
            for name, policy in self._policies.items()
        }

    # --- the strip ------------------------------------------------------------------------------

    def payload(self) -> dict[str, object]:
        """say: one sentence; policies: a card each."""
        return {
            "say": self._sentence(),
            "state": "down" if self._down else self._state(),
            "policies": [self._card(name, policy) for name, policy in self._policies.items()],
        }

    def _state(self) -> str:
        states = {policy.state for policy in self._policies.values()}
        return next(
            (s for s in ("running", "waiting", "failed", "stopped", "done") if s in states), "idle"
        )

    def _sentence(self) -> str:
        if self._failure:
            return self._failure
        parts = []
        if self._loading:
            parts.append(f"Getting ready: {self._loading}.")
        if self._place is not None:
            parts.append(place(self._place))
        if not parts:
            parts += [
                f"{self._title(name)} {policy.line}."
                for name, policy in self._policies.items()
                if policy.state == "running" and policy.line
            ]
        if not parts:
            closing = {
                "stopped": "Stopped. What was finished before stays.",
                "failed": "Not every policy could answer.",
                "done": _CACHED if self.cached else "Done.",
                "idle": "Ready." if self._setup.infos else "Getting ready.",
            }
            parts.append(closing.get(self._state(), "Starting."))
        return " ".join(parts)

    def _title(self, name: str) -> str:
        return self._setup.infos[name].title if name in self._setup.infos else name

    def _card(self, name: str, policy: _Policy) -> dict[str, object]:
        info = self._setup.infos.get(name)
        trace = policy.trace
        return {
            "name": name,
            "policy": self._unknown(name) if info is None else theme.identity(info),
            "about": "" if info is None else _about(info),
            "state": policy.state,
            "line": policy.line,
            "share": policy.share,
            "failure": theme.plain(policy.failure),
            "decode_failure": theme.plain((trace and trace.decode_failure) or ""),
            "stages": [] if trace is None else _stages(trace),
            "cached": self.cached,
            "reused": [] if trace is None else list(trace.reused),
            "warnings": [] if trace is None else [theme.plain(w) for w in trace.warnings],
            "link": results.link(self._key, name) if self._key and trace else "",
        }

    def _unknown(self, name: str) -> dict[str, str]:
        """What stands for `theme.identity` until a policy is loaded."""
        badge = "not opened" if self._down else "loading"
        return {"family": "", "title": name, "badge": badge, "notice": ""}


def place(place: Queued) -> str:
    """A place in line, in words."""
    if not place.position:
        return "You are next."
    many = place.position
    wait = place.expected_wait_s
    ahead = "One run is before yours" if many == 1 else f"{many} runs are before yours"
    return f"{ahead}{'' if wait is None else f', about {max(1, round(wait))} s'}."


_STAGES = {
    "preprocess": "preprocessing",
    "postprocess": "post-processing",
    "denoise": "denoising",
    "decode": "decoding",
}


def _is_loading(phase: str) -> bool:
    """As a whole: with how much of it at most, but no stage behind."""
    return phase.split(" (")[0] in _LOADING


def _plain(stage: str) -> str:
    return " ".join(_STAGES.get(word, word) for word in stage.split())


def _stages(trace: Trace) -> list[list]:
    return [[_plain(stage), ms] for stage, ms in trace.timings_ms.items()]


def _about(info: PolicyInfo) -> str:
    chunk = f"{info.horizon} steps at {info.control_hz:g} Hz"
    device = info.computation.device
    where = (f"runs on {'the CPU' if device == 'cpu' else device}",) if device else ()
    parts = (info.name, info.robot, chunk, f"{info.image_size} px pictures", *where, info.revision)
    return " · ".join(theme.plain(part) for part in parts)
