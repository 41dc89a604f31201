"""From a policy's name to a policy that answers: the factory that the worker's process calls."""

import collections
import dataclasses
import functools
import os
import queue
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import tokenizers

from models.byte_alphabet import CHARACTER_OF_BYTE
from models.checkpoints.assembly import (
    load_lerobot,
    load_openpi,
    model_of_shapes,
    random_model,
)
from models.checkpoints.bundled import load_bundled
from models.checkpoints.digests import revision
from models.config import Config, DType, to_dict
from models.fast_tokenizer import FastActionTokenizer, FastTokenizer
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast
from models.tokenizer import PaligemmaTokenizer
from playground.checkpoints import catalog, download, memory_plan
from playground.checkpoints.catalog import TOKENIZER
from playground.checkpoints.device import device_for
from playground.checkpoints.entry import Entry
from playground.checkpoints.resolve import Request, resolve, resolve_all
from playground.checkpoints.stats import norm_stats, stats_notes
from playground.policies.base import Policy, computation
from playground.policies.fast import FastPolicy
from playground.policies.flow import FlowPolicy
from playground.policies.warm_up import CompiledAhead, warm_up
from playground.serving.compile_cache import keep_compiled_programs
from playground.serving.events import Phase
from playground.serving.shelf import Shelf
from playground.trace import PolicyInfo, Stats

T = TypeVar("T")

LOAD_DEADLINE_S, WARM_UP_DEADLINE_S = 600.0, 1800.0

REAL_BADGE = "real checkpoint"
UNTRAINED_BADGE = "untrained weights"
UNTRAINED_NOTICE = (
    "Random weights: the answer shows how such a model works, and says nothing about any robot."
)
BUNDLED_BADGE = "small bundled policy"
BUNDLED_NOTICE = (
    "A small policy that knows only the simulated table. On other pictures its answer shows how "
    "the model works, not what it can do."
)


def load(
    policies: Sequence[str | Mapping[str, Any]],
) -> Generator[Phase, None, dict[str, Policy]]:
    """Opens every policy and runs each once, so that the first visitor waits for no compiler.

    policies: `resolve.Request`s as JSON objects, or a checkpoint's name alone. Yields a Phase
    before each part and while one lasts; returns the policies by name. Raises ValueError for a
    policy that cannot be opened, and before anything is fetched or loaded where they do not fit
    into memory together, or where JAX finds no device.
    """
    asked = _prepared(policies)
    check_memory([entry for _, entry in asked])
    opened = {}
    for request, entry in asked:
        entry = yield from _recognised(request, entry)
        opened[entry.name] = yield from open_steps(entry)
    tell_apart(list(opened.values()))
    for name, policy in opened.items():
        yield Phase(name, "compiling", WARM_UP_DEADLINE_S)
        warm_up(policy)
    return opened


def shelf(
    policies: Sequence[str | Mapping[str, Any]], most: int | None = None
) -> Generator[Phase, None, Shelf]:
    """`load` of policies that need not fit into memory together: those used last are held, the
    others are loaded when they are asked for.

    most: how many are held at most; None for as many as fit by the memory plan. Raises ValueError
    for a policy that does not fit alone.
    """
    asked = _prepared(policies)
    entries = {entry.name: entry for _, entry in asked}
    needs = {name: _need(entry) for name, entry in entries.items()}
    machine = memory_plan.machine()  # as it is before anything is held
    for need in needs.values():
        memory_plan.check([need], machine)

    def fits(names: Collection[str]) -> bool:
        try:
            memory_plan.check([needs[name] for name in names], machine)
        except ValueError:
            return False
        return most is None or len(names) <= most

    for request, entry in asked:
        entry = yield from _recognised(request, entry)
        if entry.kind not in ("bundled", "untrained"):
            fetch = functools.partial(_fetch, entry)
            entry, _ = yield from _reported(entry.name, "downloading", fetch)
        entries[entry.name] = entry
    infos = [card(entry, precision(entry)[0]) for entry in entries.values()]
    cards = {info.name: info for info in _distinct(infos)}

    def open_one(name: str) -> Generator[Phase, None, Policy]:
        policy = yield from open_steps(entries[name])
        policy.info = dataclasses.replace(cards[name], computation=policy.info.computation)
        yield Phase(name, "compiling", WARM_UP_DEADLINE_S)
        warm_up(policy)
        return policy

    held = Shelf(cards, open_one, fits)
    yield from held.fill()
    return held


def _prepared(policies: Sequence[str | Mapping[str, Any]]) -> list[tuple[Request, Entry]]:
    """What to open, once JAX is set up for it."""
    check_device()
    requests = [Request(x) if isinstance(x, str) else Request(**x) for x in policies]
    entries = resolve_all(requests)
    published = [entry for entry in entries if entry.kind not in ("bundled", "untrained")]
    memory_plan.prepare(narrow=bool(published))
    keep_compiled_programs()
    return list(zip(requests, entries, strict=True))


def _recognised(request: Request, entry: Entry) -> Generator[Phase, None, Entry]:
    """The entry of a policy on the hub once its files are here: its weights tell what saved
    them."""
    if entry.address and entry.kind == "lerobot":
        fetch = functools.partial(download.fetch_policy, entry.address)
        yield from _reported(entry.name, "downloading", fetch)
        return resolve(request)
    return entry


def tell_apart(policies: Sequence[Policy]) -> None:
    """Those of one title are called by their names."""
    for policy, info in zip(policies, _distinct([p.info for p in policies]), strict=True):
        policy.info = info


def _distinct(infos: Sequence[PolicyInfo]) -> list[PolicyInfo]:
    titles = collections.Counter(info.title for info in infos)
    return [
        dataclasses.replace(info, title=info.name) if titles[info.title] > 1 else info
        for info in infos
    ]


def check_device() -> None:
    """Raises ValueError if JAX has no device to run on."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where all that is asked for fails
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(
            f"JAX finds no device (JAX_PLATFORMS={asked!r}): leave JAX_PLATFORMS unset, or install "
            "JAX for this machine's hardware"
        ) from error


def check_memory(entries: Sequence[Entry]) -> None:
    """Raises ValueError if this machine cannot hold the policies together."""
    needs = [_need(entry) for entry in entries]
    if needs:
        memory_plan.check(needs, memory_plan.machine())


def _need(entry: Entry) -> memory_plan.Need:
    return memory_plan.need(entry.name, *precision(entry), on_host=_on_cpu(entry))


def open_policy(checkpoint: str | Entry) -> Policy:
    """`load` of one policy, without a warm-up, for notebooks and tests. checkpoint: its entry, or
    what `resolve` takes for one."""
    entry = resolve(Request(checkpoint)) if isinstance(checkpoint, str) else checkpoint
    steps = open_steps(entry)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def open_steps(entry: Entry) -> Generator[Phase, None, Policy]:
    """Fetches and loads a policy; yields what it is at."""
    if entry.kind == "untrained":
        yield Phase(entry.name, "loading", LOAD_DEADLINE_S)
        return untrained(entry.name)
    if entry.kind == "bundled":
        yield Phase(entry.name, "loading", LOAD_DEADLINE_S)
        _, model = load_bundled(entry.here, device_for(entry.config))
        text = TOKENIZER
    else:
        entry, text = yield from _reported(entry.name, "downloading", lambda p: _fetch(entry, p))
        ahead = CompiledAhead(lambda: _of_shapes(entry, text))
        with ahead:
            model = yield from _reported(entry.name, "loading", lambda p: _load(entry, p))
            yield Phase(entry.name, "compiling", WARM_UP_DEADLINE_S)
            info = card(entry, model.config)
        return _assembled(info, entry, model, text)  # while `ahead` holds what it compiled
    return _assembled(card(entry, model.config), entry, model, text)


def _of_shapes(entry: Entry, text: Path) -> Policy:
    """The policy with shapes in place of its weights, to be compiled."""
    config, storage = precision(entry)
    model = model_of_shapes(config, storage, device_for(config))
    return _assembled(card(entry, config, weights=""), entry, model, text)


def _assembled(info: PolicyInfo, entry: Entry, model: Pi0 | Pi0Fast, text: Path) -> Policy:
    named = entry.action_tokenizer
    actions = None if named is None else FastActionTokenizer.load(named)
    return assemble(info, entry, model, PaligemmaTokenizer(text, entry.convention), actions)


def card(entry: Entry, config: Config, weights: str | None = None) -> PolicyInfo:
    """What a policy says of itself, from its files but for the weights. config: its model's;
    weights: their revision, None to compute it from the files."""
    if entry.kind == "untrained":
        return untrained(entry.name).info
    bundled = entry.kind == "bundled"
    return describe(
        entry,
        config,
        revision=revision(entry.params or entry.here) if weights is None else weights,
        badge=BUNDLED_BADGE if bundled else REAL_BADGE,
        notice=BUNDLED_NOTICE if bundled else entry.notice,
        stats=norm_stats(entry),
        stats_notes=stats_notes(entry),
    )


def _fetch(entry: Entry, progress: download.Progress) -> tuple[Entry, Path]:
    """The entry with its files on this machine, and the sentencepiece model."""
    entry = download.obtain(entry, progress)
    return entry, entry.text_tokenizer or download.fetch(catalog.PALIGEMMA_TOKENIZER, progress)


def precision(entry: Entry) -> tuple[Config, DType]:
    """`memory_plan.precision` on the device that JAX has."""
    return memory_plan.precision(entry, cpu=_on_cpu(entry))


def _on_cpu(entry: Entry) -> bool:
    return device_for(entry.config).platform == "cpu"


def _load(entry: Entry, progress: Callable[[int, int, str], None]) -> Pi0 | Pi0Fast:
    config, storage = precision(entry)
    how = {"dtype": storage, "progress": progress, "device": device_for(config)}
    if entry.kind in ("lerobot", "openpi_pytorch"):
        return load_lerobot(entry.here, config, base=entry.base_folder, **how)
    return load_openpi(entry.params or entry.here, config, adapters=entry.adapters, **how)


def _reported(
    policy: str, what: str, call: Callable[[download.Progress], T]
) -> Generator[Phase, None, T]:
    """The result of call(progress), which runs in a thread while its progress is reported."""
    news: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    found: list[T] = []
    failed: list[BaseException] = []

    def run():
        try:
            found.append(call(lambda done, total, name: news.put((done, total))))
        except BaseException as error:  # raised again below, where somebody listens
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield Phase(policy, what, LOAD_DEADLINE_S)
    while thread.is_alive():
        thread.join(1.0)
        latest = None
        while not news.empty():
            latest = news.get()
        if latest is not None:
            done, total = (count / 1e9 for count in latest)
            yield Phase(policy, f"{what} ({done:.1f} of {total:.1f} GB)", LOAD_DEADLINE_S)
    if failed:
        raise failed[0]
    return found[0]


def untrained(name: str, seed: int = 0) -> Policy:
    """A small policy with random weights, the same for the same seed (`catalog.untrained`)."""
    entry = catalog.untrained(name)
    fast = entry.family == "pi0_fast"
    model = random_model(entry.config, seed, device=device_for(entry.config))
    rest = np.array(entry.robot.resting_state)
    # Nothing was measured: one radian about the resting pose, and small offsets.
    stats = {
        "state": _spread(rest, 1.0),
        "actions": _spread(np.where(entry.robot.offsets, 0.0, rest), 0.5),
    }
    info = describe(
        entry,
        entry.config,
        revision=f"random-{seed}",
        badge=UNTRAINED_BADGE,
        notice=UNTRAINED_NOTICE,
        stats=stats,
    )
    actions = _unfitted_action_tokenizer() if fast else None
    return assemble(info, entry, model, PaligemmaTokenizer(TOKENIZER), actions)


def _unfitted_action_tokenizer() -> FastActionTokenizer:
    """FAST without any data to fit it on: a token for every byte, and none for several."""
    bpe = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(CHARACTER_OF_BYTE.values())}, [])
    )
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return FastActionTokenizer(bpe, scale=10, min_token=-64)


def _spread(middle: np.ndarray, width: float) -> Stats:
    row = lambda values: tuple(values.tolist())  # noqa: E731
    deviation = np.full(middle.shape, width / 2)
    return Stats(row(middle), row(deviation), row(middle - width), row(middle + width))


def describe(
    entry: Entry,
    config: Config,
    *,
    revision: str,
    badge: str,
    notice: str,
    stats: Mapping[str, Stats],
    stats_notes: tuple[str, ...] = (),
) -> PolicyInfo:
    """A policy's card, from its entry and its norm stats (`state`, `actions`). `config` is the
    model's own, whose compute type may differ from the entry's."""
    robot = entry.robot
    return PolicyInfo(
        name=entry.name,
        title=entry.title,
        family=entry.family,
        badge=badge,
        notice=notice,
        revision=revision,
        robot=robot.name,
        slots=entry.slots,
        image_size=config.vision.image_size,
        state=robot.state,
        actions=robot.actions,
        control_hz=robot.control_hz,
        horizon=config.action_horizon,
        max_token_len=config.max_token_len,
        normalisation=entry.normalisation,
        action_normalisation=entry.action_normalisation,
        computation=computation(config, device_for(config)),
        state_stats=stats["state"],
        action_stats=stats["actions"],
        model_config=to_dict(config),
        default_prompt=entry.default_prompt,
        stats_notes=stats_notes,
        constrained=entry.constrained,
    )


def assemble(
    info: PolicyInfo,
    entry: Entry,
    model: Pi0 | Pi0Fast,
    tokenizer: PaligemmaTokenizer,
    fast: FastActionTokenizer | None,
) -> Policy:
    """The policy of a model, whatever its kind. Raises ValueError if the text's tokens are not the
    model's: more than its table has, or, where it writes tokens itself, fewer."""
    spare = model.config.vocab_size - tokenizer.vocab_size
    if spare < 0 or (spare and entry.family == "pi0_fast"):
        raise ValueError(
            f"{entry.name} knows {model.config.vocab_size:,} tokens, its sentencepiece model has "
            f"{tokenizer.vocab_size:,}: give the text_tokenizer that it was trained with"
        )
    if isinstance(model, Pi0):
        return FlowPolicy(info, entry.robot, model, tokenizer, entry.state_in_prompt, entry.rules)
    assert fast is not None, "pi0-FAST writes action tokens"
    return FastPolicy(info, entry.robot, model, FastTokenizer(tokenizer, fast), entry.rules)
