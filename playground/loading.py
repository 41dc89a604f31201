"""From a policy's name to a policy that answers: the factory that the worker's process calls."""

import hashlib
import os
import platform
from collections.abc import Generator, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from models.checkpoint import load_bundled
from models.config import PI0_FAST_TABLETOP, PI0_TABLETOP, Config, Pi0Config, to_dict
from models.files import read_bundled, revision
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast
from models.tokenizer import FastActionTokenizer, FastTokenizer, PaligemmaTokenizer
from playground.events import Phase
from playground.policy import FastPolicy, FlowPolicy, Policy
from playground.robots import ROBOTS, TABLETOP, Robot
from playground.trace import Options, PolicyInfo, RawObservation, Stats
from playground.transforms import read_norm_stats

ASSETS = Path(__file__).resolve().parents[1] / "assets"
TOKENIZER = ASSETS / "tokenizer" / "paligemma_small.model"
DEFAULT_POLICIES = ("pi0_tabletop", "pi0_fast_tabletop")
LOAD_DEADLINE_S, WARM_UP_DEADLINE_S = 300.0, 600.0

UNTRAINED_BADGE = "untrained weights"
UNTRAINED_NOTICE = (
    "Random weights: the answer shows how such a model works, and says nothing about any robot."
)
BUNDLED_BADGE = "small bundled policy"
BUNDLED_NOTICE = (
    "A small policy that knows only the simulated table. On other pictures its answer shows how "
    "the model works, not what it can do."
)


def load(policies: list[str]) -> Generator[Phase, None, Mapping[str, Policy]]:
    """Opens every policy and runs each once, so that the first visitor waits for no compiler.

    Yields a Phase before each part; returns the policies by name. Raises ValueError for a policy
    that cannot be opened.
    """
    keep_compiled_programs()
    opened = {}
    for name in policies:
        yield Phase(name, "loading", LOAD_DEADLINE_S)
        opened[name] = open_policy(name)
    for name, policy in opened.items():
        yield Phase(name, "compiling", WARM_UP_DEADLINE_S)
        warm_up(policy)
    return opened


def open_policy(name: str) -> Policy:
    """A bundled policy by name, with random weights while `assets/` holds no trained ones."""
    folder = ASSETS / name
    if (folder / "config.json").is_file():
        return open_bundled(folder)
    if name not in DEFAULT_POLICIES:
        raise ValueError(f"no policy is called {name!r}; bundled: {', '.join(DEFAULT_POLICIES)}")
    return untrained(name)


def open_bundled(folder: Path) -> Policy:
    """A small policy from its folder: weights and config (models/checkpoint.py), `norm_stats.json`,
    and for pi0-FAST the action tokenizer in `fast/`."""
    metadata = read_bundled(folder)["metadata"]
    config, model = load_bundled(folder)
    robot = ROBOTS[metadata["robot"]]
    info = describe(
        folder.name,
        config,
        robot,
        revision=revision(folder),
        badge=BUNDLED_BADGE,
        notice=BUNDLED_NOTICE,
        normalisation=metadata["normalisation"],
        stats=read_norm_stats(folder / "norm_stats.json"),
    )
    fast = None if isinstance(config, Pi0Config) else FastActionTokenizer.load(folder / "fast")
    return assemble(info, robot, model, PaligemmaTokenizer(TOKENIZER), fast)


def untrained(name: str, seed: int = 0) -> Policy:
    """A small policy with random weights, the same for the same seed, on the bundled table."""
    fast = "fast" in name
    config = PI0_FAST_TABLETOP if fast else PI0_TABLETOP
    model = (Pi0Fast if fast else Pi0)(config, rngs=nnx.Rngs(seed))
    rest = np.array(TABLETOP.resting_state)
    # Nothing was measured: one radian about the resting pose, and small offsets.
    stats = {
        "state": _spread(rest, 1.0),
        "actions": _spread(np.where(TABLETOP.offsets, 0.0, rest), 0.5),
    }
    info = describe(
        name,
        config,
        TABLETOP,
        revision=f"random-{seed}",
        badge=UNTRAINED_BADGE,
        notice=UNTRAINED_NOTICE,
        normalisation="quantile" if fast else "z-score",
        stats=stats,
    )
    chunks = np.random.default_rng(seed).normal(size=(64, 50, 14)).cumsum(axis=1) / 10
    action_tokens = FastActionTokenizer.fit(chunks, vocab_size=512) if fast else None
    return assemble(info, TABLETOP, model, PaligemmaTokenizer(TOKENIZER), action_tokens)


def _spread(middle: np.ndarray, width: float) -> Stats:
    row = lambda values: tuple(values.tolist())  # noqa: E731
    deviation = np.full(middle.shape, width / 2)
    return Stats(row(middle), row(deviation), row(middle - width), row(middle + width))


def describe(
    name: str,
    config: Config,
    robot: Robot,
    *,
    revision: str,
    badge: str,
    notice: str,
    normalisation: str,
    stats: Mapping[str, Stats],
) -> PolicyInfo:
    """A policy's card, from its config, its robot and its norm stats (`state`, `actions`)."""
    family = to_dict(config)["model"]
    title = {"pi0": "pi0", "pi05": "pi0.5", "pi0_fast": "pi0-FAST"}[family]
    return PolicyInfo(
        name=name,
        title=title,
        family=family,
        badge=badge,
        notice=notice,
        revision=revision,
        robot=robot.name,
        slots=robot.slots(family),
        image_size=config.vision.image_size,
        state=robot.state,
        actions=robot.actions,
        control_hz=robot.control_hz,
        horizon=config.action_horizon,
        max_token_len=config.max_token_len,
        normalisation=normalisation,
        state_stats=stats["state"],
        action_stats=stats["actions"],
        model_config=to_dict(config),
    )


def assemble(
    info: PolicyInfo,
    robot: Robot,
    model: Pi0 | Pi0Fast,
    tokenizer: PaligemmaTokenizer,
    fast: FastActionTokenizer | None,
) -> Policy:
    """The policy of a model, whatever its kind."""
    if isinstance(model, Pi0):
        return FlowPolicy(info, robot, model, tokenizer)
    return FastPolicy(info, robot, model, FastTokenizer(tokenizer, fast))


def warm_up(policy: Policy) -> None:
    """Compiles what a default run needs, by one run on a grey picture and the resting state."""
    info = policy.info
    grey = np.full((info.image_size, info.image_size, 3), 128, np.uint8)
    images = {slot.name: grey for slot in info.slots if slot.required}
    state = np.array(policy.robot.resting_state)
    for _ in policy.infer(RawObservation(info.robot, images, {}, "", state), Options()):
        pass


def keep_compiled_programs() -> None:
    """Compiled programs outlive the process, in a folder that nobody else can write: whoever can
    put a program there can have it run. CPU programs fit one kind of processor only, so the folder
    is one a host kind. `PI0_PLAYGROUND_CACHE` moves it."""
    home = os.environ.get("PI0_PLAYGROUND_CACHE", Path.home() / ".cache" / "pi0-playground")
    folder = Path(home) / "programs" / _host_kind()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (folder.parent, folder):
        path.chmod(0o700)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _host_kind() -> str:
    """A short digest of the processor's kind and abilities."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else [platform.processor()]
    kind = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    text = "\n".join([platform.machine(), *sorted(kind or lines)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
