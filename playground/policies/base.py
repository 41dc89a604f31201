"""A policy: a checkpoint with its robot. It turns a raw observation into what the model eats, runs
the model step by step, and turns the answer back into the robot's units, as events and a trace.

What both kinds share; `flow.py` and `fast.py` run the models. N samples, H horizon,
D the robot's action dimensions, M the model's.
"""

import collections
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import compiled
from models.checkpoints.openpi import parameter_count
from models.compiled import Device, device_of, precision
from models.config import Config, Pi0Config
from models.fast_tokenizer import FastPrompt
from models.masks import Cuts
from models.observation import Observation, uint8_to_float
from models.tokenizer import Prompt
from playground import cuts
from playground.policies import places as layout
from playground.policies.environment import versions
from playground.policies.places import Places
from playground.robots import builtin, conversion, transforms
from playground.robots.conversion import ModelInput
from playground.robots.ranges import far_states
from playground.robots.robot import NO_CAMERA, Robot
from playground.robots.transforms import InputRules
from playground.serving.events import Done, Event, Phase
from playground.tabletop import camera
from playground.trace import (
    Computation,
    Inputs,
    Options,
    PolicyInfo,
    RawObservation,
    SlotMode,
    image_digest,
)

COMPILE_DEADLINE_S = 600.0
CALL_DEADLINE_S = 120.0
FRAME_MS = 50.0  # steps that follow each other faster are no longer followed by a person
SMALL = 10_000_000  # parameters; with more, a CPU takes longer than 100 ms for an answer
MAX_STEPS, MAX_SAMPLES, MAX_TOKENS = 100, 32, 512
MAX_GUIDANCE, MAX_CUTS = 3.0, 64
KEPT_IMAGES, KEPT_PREFIXES = 64, 8
ROBOTS_IMAGES, ROBOTS_PREFIXES = 8, 1
TEXT_STEP = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """An observation at the model's door. raw: as it was given; images: what the model sees, uint8
    [size, size, 3] by slot, in the model's order; bars: by slot, bool [size, size], see
    `ModelInput`; modes: by slot; state: float64 [D], normalised; prompt: its tokens; on_table: as
    in a trace; warnings: plain sentences."""

    raw: RawObservation
    images: dict[str, np.ndarray]
    bars: dict[str, np.ndarray]
    modes: dict[str, SlotMode]
    state: np.ndarray
    prompt: Prompt | FastPrompt
    on_table: bool | None
    warnings: tuple[str, ...]


def patience_s(config: Config, device: Device) -> float:
    """How much longer a call may take for the model's size. On a quarter of a CPU core a prefix of
    a 3B model took more than two minutes; the small ones get some seconds."""
    return 300e-9 * parameter_count(config) if device.platform == "cpu" else 0.0


_LOOPS = {True: "one program", False: "step by step"}  # many steps or tokens at once, or each


def computation(config: Config, device: Device) -> Computation:
    """What a model computes with there; its loop as expected, before a step has been measured."""
    fast = device.platform != "cpu" or parameter_count(config) <= SMALL
    return Computation(device.device_kind, config.dtype, precision(config.dtype), _LOOPS[fast])


class Policy:
    """What both kinds share: the way in, the caches, and the frame of a trace."""

    batches = False  # whether `chunks` runs its observations as one batch

    def __init__(self, info: PolicyInfo, robot: Robot, model, programs, rules: InputRules):
        self.robot, self.config, self.rules = robot, model.config, rules
        self.programs, self.device = programs, device_of(model)
        how = computation(self.config, self.device)
        self.info = dataclasses.replace(info, computation=how)
        self.at_once = how.loop == _LOOPS[True]
        away = self.device.platform != "cpu"
        # How many pictures go through SigLIP in one call. A GPU takes as long for three as for one,
        # and one size is one program; a CPU takes three times as long, and can stop between.
        self.pictures_a_call = len(self.config.image_slots) if away else 1
        self.step_ms = math.inf
        self.kept = Kept.of(KEPT_IMAGES, KEPT_PREFIXES)
        # A robot sends new pictures many times a second: it would push out all that visitors use.
        # What repeats of its own are the slots without a camera.
        self.kept_of_robots = Kept.of(ROBOTS_IMAGES, ROBOTS_PREFIXES)
        self._compiled: set[tuple] = set()
        self._dropped = compiled.times_dropped()
        self._patience_s = patience_s(self.config, self.device)

    def settle(self) -> bool:
        """Chooses how steps run by what one has taken so far: one by one only where a person can
        follow. Returns whether that is another way than before. For the time before the first
        visitor: the ways may differ in their last bits."""
        before, self.at_once = self.at_once, self.step_ms < FRAME_MS
        how = dataclasses.replace(self.info.computation, loop=_LOOPS[self.at_once])
        self.info = dataclasses.replace(self.info, computation=how)
        return self.at_once != before

    def tokenize(self, prompt: str, state: np.ndarray) -> Prompt | FastPrompt:
        """The prompt's tokens for a normalised state [D]."""
        raise NotImplementedError

    def prepare(self, raw: RawObservation) -> Prepared:
        """Raises ValueError for what the robot or the policy cannot take."""
        info = self.info
        if raw.robot != info.robot:
            raise ValueError(
                f"{info.title} drives {info.robot}; the observation is from {raw.robot}"
            )
        given = conversion.to_model(
            self.robot,
            info.family,
            raw,
            info.stats("state"),
            info.method("state"),
            info.image_size,
        )
        missing = max(0, self.rules.prompt_state_dims - len(given.state))
        prompt = self.tokenize(raw.prompt, np.pad(given.state, (0, missing)))
        on_table = self._on_table(given)
        foreign = (camera.FOREIGN,) if on_table is False else ()
        warnings = (*foreign, *self._warnings(raw, prompt))
        state, modes = given.state, given.modes
        return Prepared(raw, given.images, given.bars, modes, state, prompt, on_table, warnings)

    def infer(self, raw: RawObservation, options: Options) -> Iterator[Event]:
        """The run as it happens: Phase before whatever blocks, Step or TokenEvent, then Done."""
        check_options(options)
        self._hold_programs()
        timer = _Timer()
        with timer("preprocess"):
            prepared = self.prepare(raw)
        digests = self._picture_digests(prepared)
        new = _new_pictures(digests, self.kept)
        for start in range(0, len(new), self.pictures_a_call):
            yield (phase := self._phase("vision", ("vision",)))
            with timer(phase.phase):
                self._embed(prepared, new[start : start + self.pictures_a_call], self.kept)
        tokens = {slot: self.kept.image_tokens[digest] for slot, digest in digests.items()}
        embedded = {slot for _, slot in new}
        reused = [f"image embedding of {slot}" for slot in tokens if slot not in embedded]
        trace = yield from self._run(raw, prepared, options, tokens, timer, reused)
        trace = dataclasses.replace(trace, timings_ms=timer.ms, reused=tuple(reused))
        yield Done(self.info.name, trace)

    def actions(
        self, raw: RawObservation, options: Options
    ) -> tuple[np.ndarray | None, str | None]:
        """The chunks alone, by whole compiled loops: (float32 [N, H, D], normalised, None), or
        (None, why) where FAST's tokens do not decode.

        Equal to `infer`'s up to rounding, and quicker where nobody watches. pi0 runs its N samples
        as one batch over one prefix. FAST runs one for each seed from `options.seed` on, one in all
        at temperature 0; a single chunk that does not decode is reason enough for None.
        """
        return self._whole(raw, options, self.kept)

    def _whole(self, raw: RawObservation, options: Options, kept: "Kept"):
        check_options(options)
        self._hold_programs()
        prepared = self.prepare(raw)
        tokens = self.image_tokens(prepared, kept)
        actions, failure = self._actions(prepared, options, tokens, kept)
        return None if actions is None else self._finite(actions), failure

    def image_tokens(self, prepared: Prepared, kept: "Kept | None" = None) -> dict[str, jax.Array]:
        """By slot, what the language model reads of each attended picture, [1, tokens, D]: from the
        last few of those kept (None: for the page's visitors), or embedded now."""
        kept, digests = kept or self.kept, self._picture_digests(prepared)
        new = _new_pictures(digests, kept)
        for start in range(0, len(new), self.pictures_a_call):
            self._embed(prepared, new[start : start + self.pictures_a_call], kept)
        return {slot: kept.image_tokens[digest] for slot, digest in digests.items()}

    def _picture_digests(self, prepared: Prepared) -> dict[str, str]:
        """By slot, of those that go through the vision transformer."""
        slots = self._attended_images(prepared)
        return {slot: picture_digest(prepared, slot, self.rules) for slot in slots}

    def _embed(self, prepared: Prepared, new: Sequence[tuple[str, str]], kept: "Kept") -> None:
        """Runs SigLIP on up to `pictures_a_call` pictures, (digest, slot) each, and keeps what it
        gives. The batch is always full, so that the numbers of a picture do not depend on how many
        came with it."""
        pixels = [self.pixels(prepared, slot) for _, slot in new]
        pixels += pixels[-1:] * (self.pictures_a_call - len(new))
        tokens = jax.block_until_ready(self.programs.embed_images(np.stack(pixels)))
        rows = jnp.split(tokens, len(pixels)) if len(pixels) > 1 else [tokens]
        for (digest, _), row in zip(new, rows, strict=False):
            kept.image_tokens.put(digest, row)

    def compile_ahead(
        self, raw: RawObservation, options: Options, go_on: Callable[[], bool] = lambda: True
    ) -> None:
        """Compiles what `infer` runs, without running it: the weights may be shapes alone. Ends
        before the next program when `go_on` says no."""
        prepared = self.prepare(raw)
        slots = self._attended_images(prepared)
        if not (slots and go_on()):
            return
        pixels = np.stack([self.pixels(prepared, next(iter(slots)))] * self.pictures_a_call)
        rows = self.programs.embed_images.ahead(pixels)
        row = jax.ShapeDtypeStruct((1, *rows.shape[1:]), rows.dtype, sharding=rows.sharding)
        if go_on():
            self._compile_loop(prepared, options, dict.fromkeys(slots, row), go_on)

    def _compile_loop(self, prepared, options, tokens, go_on):
        """The rest of it. tokens: the shapes by slot."""
        raise NotImplementedError

    def text_columns(self, prepared: Prepared, attention: bool = False) -> int:
        """How many columns of text run. Measured attention is shown over every one."""
        mask = prepared.prompt.mask
        return len(mask) if attention else text_places(mask)

    def observation(self, prepared: Prepared, columns: int, rows: int = 1) -> Observation:
        """What the models' programs take beside `image_tokens`, with `columns` of text. NumPy's
        arrays, which a program takes to its own device at once."""
        prompt = prepared.prompt

        def repeated(array):
            return np.repeat(array[None], rows, axis=0)

        def text(array):
            return repeated(array[:columns])

        fast, config = prompt if isinstance(prompt, FastPrompt) else None, self.config
        if isinstance(config, Pi0Config) and not config.pi05:
            state = transforms.pad(prepared.state, config.action_dim)
        else:  # whose prompt holds it, however many dimensions it has
            state = np.zeros(config.action_dim)
        slots, modes = self._attended_images(prepared), prepared.modes
        return Observation(
            images={},
            image_masks={slot: np.full(rows, modes[slot] != "masked") for slot in slots},
            state=repeated(state.astype(np.float32)),
            tokens=text(prompt.tokens.astype(np.int32)),
            token_mask=text(prompt.mask),
            token_ar_mask=None if fast is None else text(fast.ar_mask.astype(np.int32)),
            token_loss_mask=None if fast is None else text(fast.loss_mask),
        )

    def prefilled(
        self,
        prepared: Prepared,
        columns: int,
        options: Options | None = None,
        tokens: Mapping[str, jax.Array] | None = None,
        kept: "Kept | None" = None,
    ) -> Any:
        """The prefix of one row, a `Prefix` or a `DecodeState`: from the last few or run now.

        columns: of text
        options: of those, what the prefix depends on: cuts, and the room for pi0-FAST's tokens
        tokens: `image_tokens`, if they are at hand
        kept: None for the page's visitors'
        """
        kept, options = kept or self.kept, options or Options()
        key = self._prefix_key(prepared, columns, options, False)
        if (known := kept.prefixes.get(key)) is None:
            tokens = self.image_tokens(prepared, kept) if tokens is None else tokens
            cut = self._cuts(prepared, options, columns)
            known = self._prefill(prepared, columns, options, tokens, cut, False)
            kept.prefixes.put(key, known)
        return known[0]

    def room(self, prepared: Prepared, options: Options) -> int:
        """How many places the cache has behind the prefix."""
        raise NotImplementedError

    def places(self, prepared: Prepared, columns: int) -> Places:
        """Where its parts stand in such a run."""
        raise NotImplementedError

    def _cuts(self, prepared: Prepared, options: Options, columns: int) -> Cuts | None:
        """What the model goes without; None where nothing is cut. Raises ValueError."""
        if not options.cuts:
            return None
        places = self.places(prepared, columns)
        width = len(places.valid)
        ar_mask = np.zeros(width, bool)  # cameras and prompt are one block
        room = self.room(prepared, options)
        return layout.cuts(options.cuts, places, self.config, ar_mask, room)

    def chunks(
        self, raws: Sequence[RawObservation], options: Options
    ) -> list[tuple[np.ndarray | None, str]]:
        """The first sample's chunk for each observation, float32 [H, D] in the robot's units, and
        "", or (None, why) where FAST's tokens do not decode. All use the same seed."""
        options, found = dataclasses.replace(options, num_samples=1), []
        for raw in raws:
            actions, failure = self.actions(raw, options)
            chunk = None if actions is None else self.to_robot(actions[0], raw)
            found.append((chunk, failure or ""))
        return found

    def chunk(self, raw: RawObservation, options: Options) -> tuple[np.ndarray | None, str | None]:
        """The same in the robot's units, float32 [N, H, D]: what a robot needs and no more. Neither
        uses nor fills what is kept for the page's visitors."""
        actions, failure = self._whole(raw, options, self.kept_of_robots)
        return None if actions is None else self.to_robot(actions, raw), failure

    def _actions(self, prepared, options, tokens, kept):
        raise NotImplementedError

    def pixels(self, prepared: Prepared, slot: str) -> np.ndarray:
        """What the vision transformer is given, float32 [size, size, 3]."""
        pixels = np.asarray(uint8_to_float(prepared.images[slot]))
        pixels[prepared.bars[slot]] = self.rules.bar_value
        return pixels

    def _attended_images(self, prepared: Prepared) -> dict[str, np.ndarray]:
        """The images that go through the vision transformer."""
        raise NotImplementedError

    def _run(self, raw, prepared, options, tokens, timer, reused):
        raise NotImplementedError

    def _prefix(self, prepared, columns, options, tokens, timer, reused):
        """The prefix and its attention, announced and timed: from the last few, or run now."""
        key = self._prefix_key(prepared, columns, options, options.attention)
        if (known := self.kept.prefixes.get(key)) is not None:
            reused.append("prefix")
            return known
        cut = self._cuts(prepared, options, columns)  # refused, if at all, before anything is said
        shapes = (tuple(tokens), columns, self.room(prepared, options))
        yield (phase := self._phase("prefix", ("prefix", *shapes, options.attention, cut is None)))
        with timer(phase.phase):
            known = self._prefill(prepared, columns, options, tokens, cut, options.attention)
            self.kept.prefixes.put(key, jax.block_until_ready(known))
        return known

    def _prefill(self, prepared, columns, options, tokens, cut: Cuts | None, attention: bool):
        """The prefix of one row, and its attention or ()."""
        given = (self.observation(prepared, columns), tokens, cut)
        size = self._cache_size(prepared, options)
        if attention:
            return self.programs.prefill_attention(*given, **size)
        return self.programs.prefill(*given, **size), ()

    def _cache_size(self, prepared: Prepared, options: Options) -> dict[str, int]:
        """What a prefill needs of it, where that is not always the same."""
        return {}

    def _prefix_key(self, prepared, columns: int, options: Options, attention: bool) -> str:
        """A digest of what a prefix depends on."""
        images, modes = self._picture_digests(prepared), prepared.modes
        pictures = [(slot, digest, modes[slot]) for slot, digest in images.items()]
        more = (columns, self.room(prepared, options), options.cuts, attention)
        what = repr((pictures, more)).encode() + prepared.prompt.tokens.tobytes()
        return hashlib.sha256(what).hexdigest()

    def _measured(self, parts: Iterator, phase: Phase, stage: str, timer: "_Timer") -> Iterator:
        """The parts of a loop, each when it has been computed. The first may compile, as its phase
        says; what a step of the others takes is remembered."""
        name = phase.phase
        while True:
            before = timer.ms.get(name, 0.0)
            if (part := timer.next(name, parts)) is None:
                return
            if name == stage:
                self.step_ms = min(self.step_ms, (timer.ms[name] - before) / part.num_steps)
            name = stage
            yield part

    def _on_table(self, given: ModelInput) -> bool | None:
        """Whether the table's camera took the pictures, as far as there are any: one that is
        blanked stays where it is, and what the robot's other cameras saw says nothing of it. None
        for the policy of another robot."""
        if self.robot.name != builtin.TABLETOP.name:
            return None
        others = {
            slot.name
            for slot in self.info.slots
            if slot.camera not in (builtin.TABLE_CAMERA, NO_CAMERA)
        }
        return all(
            camera.shows_table(image)
            for slot, image in given.images.items()
            if given.modes[slot] == "filled" and slot not in others
        )

    def _warnings(self, raw: RawObservation, prompt: Prompt | FastPrompt) -> tuple[str, ...]:
        found = []
        if prompt.truncated:
            found.append(
                f"The prompt is cut off: {prompt.truncated} of its tokens did not fit into "
                f"{self.info.max_token_len}."
            )
        return (*found, *far_states(self.robot, self.info, raw.state))

    def _hold_programs(self) -> None:
        """Each number of samples and of steps is a program of its own, and visitors choose them:
        too many of them go, all at once, between two runs."""
        if compiled.num_programs() > compiled.MAX_PROGRAMS:
            compiled.drop_programs()
        if self._dropped != compiled.times_dropped():
            self._dropped = compiled.times_dropped()
            self._compiled.clear()

    def _phase(self, what: str, program: tuple) -> Phase:
        """Its name is also the timings' stage. `program` stands for one compiled function with its
        shapes: the first call compiles, and is announced and timed apart."""
        if program in self._compiled:
            return Phase(self.info.name, what, CALL_DEADLINE_S + self._patience_s)
        self._compiled.add(program)
        return Phase(self.info.name, f"compiling {what}", COMPILE_DEADLINE_S + self._patience_s)

    def to_robot(self, actions: np.ndarray, raw: RawObservation) -> np.ndarray:
        """Model actions [..., H, M] in the robot's units, float32 [..., H, D]."""
        info = self.info
        actions = conversion.from_model(
            self.robot, actions, raw.state, info.stats("actions"), info.method("actions")
        )
        return self._finite(actions).astype(np.float32)

    def _finite(self, actions: np.ndarray) -> np.ndarray:
        if not np.isfinite(actions).all():
            raise ValueError(
                f"{self.info.title} produced actions that are not finite numbers; its weights or "
                "norm stats are damaged, or the state is far from anything it was trained on"
            )
        return actions

    def _shared(self, raw: RawObservation, prepared: Prepared, options: Options) -> dict:
        """The fields of a trace that both kinds fill alike."""
        prompt = prepared.prompt
        ids = prompt.tokens[prompt.mask].tolist()
        return {
            "info": self.info,
            "inputs": Inputs(
                prompt=raw.prompt,
                state=tuple(np.asarray(raw.state, np.float64).tolist()),
                modes=dict(prepared.modes),
                image_sha256={slot: image_digest(image) for slot, image in raw.images.items()},
            ),
            "options": options,
            "versions": versions(),
            "on_table": prepared.on_table,
            "images": prepared.images,
            "text": prompt.text,
            "prompt_tokens": tuple((i, self.piece(i)) for i in ids),
            "truncated": prompt.truncated,
            "warnings": (*prepared.warnings, *_interventions(self.info, options)),
        }

    def piece(self, token: int) -> str:
        """A token's text as the vocabulary has it."""
        raise NotImplementedError


# --- pieces -------------------------------------------------------------------------------------


def text_places(mask: np.ndarray) -> int:
    """How many of the text's places [L] need to run: those that are filled, and padding up to a
    multiple, since every length is a program to compile. Nobody attends to padding and it takes no
    positions: leaving it out is exact."""
    filled = max(int(mask.sum()), 1)
    return min(-(-filled // TEXT_STEP) * TEXT_STEP, len(mask))


def first_sample(attention: Sequence) -> list[np.ndarray]:
    """Of each layer's [steps, B, N, queries, columns], the first row's, a step: float16
    [L, N, queries, columns] each; none where none was asked for."""
    if not attention:
        return []
    return [*np.stack([np.asarray(layer[:, 0], np.float16) for layer in attention], axis=1)]


def _interventions(info: PolicyInfo, options: Options) -> tuple[str, ...]:
    """What is not the model as it is, in words."""
    found = []
    if options.cuts:
        found.append(f"connections are cut: {cuts.in_words(options.cuts)}")
    if options.guidance != 1 and info.family != "pi0_fast":
        found.append(f"the prompt is weighed {options.guidance:g} times")
    return tuple(f"Not the policy as it is: {one}." for one in found)


def check_options(options: Options) -> None:
    """Raises ValueError that names the option out of range."""
    if options.constrained not in (None, True, False):
        raise ValueError(f"constrained is {options.constrained!r}; it is true, false or null")
    limits = {
        "num_steps": (1, MAX_STEPS),
        "num_samples": (1, MAX_SAMPLES),
        "max_tokens": (1, MAX_TOKENS),
        "temperature": (0, 10),
        "seed": (0, 2**31 - 1),
        "guidance": (0, MAX_GUIDANCE),
    }
    for name, (low, high) in limits.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it goes from {low} to {high}")
    if len(options.cuts) > MAX_CUTS:
        raise ValueError(f"{len(options.cuts)} connections are cut; at most {MAX_CUTS} are")
    if options.cuts and options.guidance != 1:
        raise ValueError("cut connections and a guidance other than 1 are not run together")


def sample_noise(seed: int, samples: int, horizon: int, dims: int) -> np.ndarray:
    """Standard normal float32 [N, H, M]; sample i comes from seed + i alone."""
    draw = (np.random.default_rng(seed + i) for i in range(samples))
    return np.stack([rng.standard_normal((horizon, dims), np.float32) for rng in draw])


class _Recent(collections.OrderedDict):
    """The most recently used few."""

    def __init__(self, size: int):
        super().__init__()
        self._size = size

    def get(self, key):
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]

    def put(self, key, value):
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._size:
            self.popitem(last=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """What the last few observations are not computed twice for, by digest."""

    image_tokens: _Recent
    prefixes: _Recent

    @classmethod
    def of(cls, images: int, prefixes: int) -> "Kept":
        return cls(_Recent(images), _Recent(prefixes))


class _Timer:
    """Milliseconds by stage; what is measured has finished on the device."""

    def __init__(self):
        self.ms: dict[str, float] = {}
        self._stage, self._began = "", 0.0

    def __call__(self, stage: str) -> "_Timer":
        self._stage = stage
        return self

    def __enter__(self):
        self._began = time.perf_counter()

    def __exit__(self, *_):
        passed = (time.perf_counter() - self._began) * 1e3
        self.ms[self._stage] = self.ms.get(self._stage, 0.0) + passed

    def next(self, stage: str, steps: Iterator):
        """The next of `steps` when it has really been computed, or None."""
        with self(stage):
            step = next(steps, None)
            return None if step is None else jax.block_until_ready(step)


def _new_pictures(digests: Mapping[str, str], kept: Kept) -> list[tuple[str, str]]:
    """(digest, the first slot that has it) of the pictures that are not kept; the others' are used
    anew."""
    first: dict[str, str] = {}
    for slot, digest in digests.items():
        if kept.image_tokens.get(digest) is None:
            first.setdefault(digest, slot)
    return [*first.items()]


def picture_digest(prepared: Prepared, slot: str, rules: InputRules) -> str:
    """Stands for the pixels that a model is given: two pictures may differ in their bars alone."""
    digest = image_digest(prepared.images[slot])
    if rules.bar_value == transforms.BLACK:
        return digest
    return f"{digest} {hashlib.sha256(prepared.bars[slot].tobytes()).hexdigest()}"
