"""From demonstrations to what the models are trained on: prompts, normalised chunks, tokens, and
the places that the auxiliary losses ask for.

Axes: I images, P prompts an image, B = I * P rows (an image's prompts side by side), L text tokens.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import scipy.fft

from models.config import Config, Pi0Config, Pi0FastConfig
from models.fast_tokenizer import FastActionTokenizer, FastTokenizer
from models.tokenizer import ACTION_MARKER, PaligemmaTokenizer
from playground.robots.builtin import TABLETOP
from playground.robots.norm_stats import Method, RunningStats, normalise
from playground.robots.transforms import to_offsets
from playground.tabletop.scene import COLOURS
from playground.tabletop.tasks import VERBS, WORDINGS
from playground.trace import Stats
from playground.training import demonstrations, tokenizers
from playground.training.demonstrations import Looks

# Places are learned in units of about the workspace's half size, around its middle.
PLACE_MIDDLE, PLACE_UNIT = np.array([0.0, 0.5, 0.05]), np.array([0.16, 0.12, 0.06])
# Training pads text to its own lengths, shorter than a person's prompt may be: padding is seen by
# nobody, so only time depends on it. Where the state is part of it (pi0.5, pi0-FAST) it is cut
# further, to what a batch's longest needs.
PI0_TEXT, PI05_TEXT, FAST_TEXT, TEXT_STEP = 16, 112, 192, 16
# Before its postfix pi0-FAST reads at least this many tokens: 14 numbers, and words.
FAST_PROMPT_LEAST = 48
# FAST's rounding, coarser than the published 10, which a small model learned much more slowly; so
# many entries that half of the chunks take 64 tokens or fewer; an arm's coefficients are a group.
FAST_SCALE, FAST_ENTRIES, FAST_GROUP = 7.0, 1024, 7
# FAST has tokens for coefficients as far as it was fitted; 0.3 % of the chunks begin so far out
# (an arm thrown aside) that some would lie beyond. Of these the normalised offsets are cut here.
FAST_FARTHEST = 2.0
# Tokens whose coefficients are about this far apart (in roundings) count as alike at first.
ALIKE = 0.7
# How many of the coefficients to come an auxiliary loss has each token's output foretell.
UPCOMING = 4
# This share of the rows are starts: what a policy is first asked on the page. The others are
# harder: its own arm hides the cube.
_STARTS_SHARE = 0.35


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One step's rows.

    images, wrist_images: uint8 [I, size, size, 3], the table's camera, and [I, W, size, size, 3],
        those on the grippers
    patches, wrist_patches: int32 [I, 3] and [I, W, 3], the patch that holds each cube's centre; -1
        where it is out of a gripper's picture
    places: float32 [I, 3, 3], where the cubes are, in PLACE_UNITs
    named, others: int32 [B], which cube the prompt names first, and second (-1 for none)
    states, actions: float32 [B, 14] and [B, 50, 14], normalised
    tokens, token_mask, ar_mask, loss_mask: [B, L], as in models.Observation
    counts: int32 [B, L], how many coefficients the postfix holds up to this token, -1 where the
        next token holds none
    upcoming: float32 [B, L, UPCOMING], the coefficients from there on
    numbers: int32 [B, 14], where in the tokens each value of the state ends
    alike: float32 [F, F], see `alike`
    """

    images: np.ndarray
    wrist_images: np.ndarray
    patches: np.ndarray
    wrist_patches: np.ndarray
    places: np.ndarray
    named: np.ndarray
    others: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    tokens: np.ndarray
    token_mask: np.ndarray
    ar_mask: np.ndarray
    loss_mask: np.ndarray
    counts: np.ndarray
    upcoming: np.ndarray
    numbers: np.ndarray
    alike: np.ndarray


def method_of(config: Config) -> Method:
    """z-score for pi0, quantiles for pi0.5 and pi0-FAST, as in openpi."""
    return "quantile" if isinstance(config, Pi0FastConfig) or config.pi05 else "z-score"


def model_actions(chunks: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Joint targets [..., H, 14] as the robot's policy learns them (openpi's offsets)."""
    flat = [
        to_offsets(chunk, state, TABLETOP.offsets)
        for chunk, state in zip(
            TABLETOP.actions_to_model(chunks).reshape(-1, *chunks.shape[-2:]),
            TABLETOP.state_to_model(states).reshape(-1, states.shape[-1]),
            strict=True,
        )
    ]
    return np.stack(flat).reshape(chunks.shape)


def norm_stats(looks: Looks, limit: int = 4000) -> dict[str, Stats]:
    """Stats of the states and of the offsets over all requests of up to `limit` looks."""
    rows = np.random.default_rng(0).permutation(len(looks))[:limit]
    running = {"state": RunningStats(), "actions": RunningStats()}
    for part in np.array_split(rows, max(1, len(rows) // 200)):
        running["state"].update(looks.states[part])
        for request in demonstrations.requests_asked():
            asked = np.tile(request, (len(part), 1))
            chunks = demonstrations.labels(looks, part, asked)
            running["actions"].update(model_actions(chunks, looks.states[part]))
    return {name: stats.stats() for name, stats in running.items()}


def fit_fast(looks: Looks, stats: dict[str, Stats], folder: Path, limit: int = 3000) -> str:
    """Fits FAST to these demonstrations; returns a line that says how well."""
    rng = np.random.default_rng(1)
    rows = rng.integers(len(looks), size=limit)
    asked = rng.choice(demonstrations.requests_asked(), limit)
    chunks = demonstrations.labels(looks, rows, asked)
    chunks = normalise(model_actions(chunks, looks.states[rows]), stats["actions"], "quantile")
    chunks = np.clip(chunks, -FAST_FARTHEST, FAST_FARTHEST)
    return str(tokenizers.fit_fast(list(chunks), folder, FAST_ENTRIES, FAST_SCALE, FAST_GROUP))


def alike(fast: FastActionTokenizer) -> np.ndarray:
    """How far each action token passes for another, float32 [F, F], rows that sum to 1, in the
    order of the language vocabulary (so from the last one down): a Gaussian in the distance of
    their coefficients, for tokens that tell as many. A part of a character is like itself alone."""
    coefficients = [fast.coefficients(i) for i in reversed(range(fast.vocab_size))]
    found = np.eye(len(coefficients), dtype=np.float32)
    for count in {len(c) for c in coefficients if c}:
        rows = np.array([i for i, c in enumerate(coefficients) if c and len(c) == count])
        values = np.array([coefficients[i] for i in rows], np.float64)
        squares = np.square(values[:, None] - values[None]).sum(-1)
        found[np.ix_(rows, rows)] = np.exp(-squares / (2 * ALIKE**2))
    return found / found.sum(axis=1, keepdims=True)


def nearest_tokens(tokenizer: FastActionTokenizer, other: FastActionTokenizer) -> np.ndarray:
    """For each of its tokens the other tokenizer's that is most like it, int [F]: telling as many
    coefficients, or nearly so, the least apart; where several are, the one of the nearest id. A
    part of a character counts as telling none."""
    coefficients, others = (
        [np.array(t.coefficients(i) or ()) / t.scale for i in range(t.vocab_size)]
        for t in (tokenizer, other)
    )

    def nearest(token: int, values: np.ndarray) -> int:
        def apart(candidate: int) -> tuple[int, float, int]:
            theirs = others[candidate]
            shared = min(len(values), len(theirs))
            distance = float(np.abs(values[:shared] - theirs[:shared]).sum())
            return abs(len(values) - len(theirs)), distance, abs(token - candidate)

        return min(range(len(others)), key=apart)

    return np.array([nearest(token, values) for token, values in enumerate(coefficients)])


class Batcher:
    """Draws batches of one policy's training rows; batch `step` of a seed is always the same."""

    def __init__(
        self,
        looks: Looks,
        config: Config,
        stats: dict[str, Stats],
        fast_folder: Path,
        seed: int,
    ):
        """stats and fast_folder: see `norm_stats` and `fit_fast`; seed: of what is drawn."""
        self._looks, self._config, self._stats, self._seed = looks, config, stats, seed
        self._requests = demonstrations.requests_asked()
        self._method: Method = method_of(config)
        self._starts = np.flatnonzero(looks.starts)
        self._later = np.flatnonzero(~looks.starts)
        self.text = PaligemmaTokenizer(tokenizers.MODEL)
        self.fast, self._alike = None, np.zeros((0, 0), np.float32)
        if isinstance(config, Pi0FastConfig):
            fast = FastActionTokenizer.load(fast_folder)
            self.fast, self._alike = FastTokenizer(self.text, fast), alike(fast)
            self._digits = [self.text.encode(digit)[0] for digit in "0123456789"]
            known = {i: fast.coefficients(i) for i in range(fast.vocab_size)}
            self._num_coefficients = {
                self.fast.swap(i): len(v) if v else 0.5 for i, v in known.items()
            }
        self._patches = _patches(looks, config.vision.patch_size)
        self._places = ((looks.cubes - PLACE_MIDDLE) / PLACE_UNIT).astype(np.float32)

    def batch(self, step: int, images: int, prompts: int) -> Batch:
        """`images` looks with `prompts` different requests each."""
        rng = np.random.default_rng([self._seed, step])
        starts = rng.binomial(images, _STARTS_SHARE) if len(self._later) else images
        looked = np.concatenate(
            [rng.choice(self._starts, starts), rng.choice(self._later, images - starts)]
        )
        asked = np.concatenate([self._asked(row, prompts, rng) for row in looked])
        rows = np.repeat(looked, prompts)
        states = self._looks.states[rows]
        chunks = demonstrations.labels(self._looks, rows, asked)
        actions = normalise(model_actions(chunks, states), self._stats["actions"], self._method)
        if self.fast is not None:
            actions = np.clip(actions, -FAST_FARTHEST, FAST_FARTHEST)
        states = normalise(states, self._stats["state"], self._method)
        words = [self._words(request, rng) for request in asked]
        tokens, token_mask, ar_mask, loss_mask = self._tokens(words, states, actions)
        counts = self._counts(tokens, loss_mask)
        return Batch(
            images=self._looks.images[looked, 0],
            wrist_images=self._looks.images[looked, 1:],
            patches=np.maximum(self._patches[looked, 0], 0),
            wrist_patches=self._patches[looked, 1:],
            places=self._places[looked],
            named=asked[:, 1].astype(np.int32),
            others=asked[:, 2].astype(np.int32),
            states=states.astype(np.float32),
            actions=actions.astype(np.float32),
            tokens=tokens,
            token_mask=token_mask,
            ar_mask=ar_mask,
            loss_mask=loss_mask,
            counts=counts,
            upcoming=_upcoming(actions, counts),
            numbers=self._numbers(tokens, loss_mask, states.shape[1]),
            alike=self._alike,
        )

    def _asked(self, row: int, prompts: int, rng: np.random.Generator) -> np.ndarray:
        """Different requests of a look, int [prompts, 3]. The first names a cube that a hand holds
        if there is one: to carry on is hard, and by chance alone it is asked for in few rows."""
        requests = rng.permutation(self._requests)
        held = np.flatnonzero(self._looks.holders[row] >= 0)
        if len(held):
            first = np.flatnonzero(np.isin(requests[:, 1], held))[0]
            requests[[0, first]] = requests[[first, 0]]
        return requests[:prompts]

    def _words(self, request: np.ndarray, rng: np.random.Generator) -> str:
        verb, cube, other = request
        wordings = WORDINGS[VERBS[verb]]
        return wordings[rng.integers(len(wordings))].format(COLOURS[cube], COLOURS[other])

    def _tokens(self, words, states, actions) -> tuple[np.ndarray, ...]:
        if self.fast is None:
            return self._flow_tokens(words, states)
        prompts = [
            self.fast.tokenize(text, state, FAST_TEXT, chunk)
            for text, state, chunk in zip(words, states, actions, strict=True)
        ]
        names = ("tokens", "mask", "ar_mask", "loss_mask")
        tokens, mask, ar, loss = (np.stack([getattr(p, n) for p in prompts]) for n in names)
        places = _places_needed(mask)
        assert not loss[:, :FAST_PROMPT_LEAST].any(), "a prompt shorter than any can be"
        tokens, ar = tokens.astype(np.int32), ar.astype(np.int32)
        return tuple(x[:, :places] for x in (tokens, mask, ar, loss))

    def _flow_tokens(self, words, states) -> tuple[np.ndarray, ...]:
        pi05 = isinstance(self._config, Pi0Config) and self._config.pi05
        if pi05:
            prompts = [
                self.text.tokenize(text, PI05_TEXT, state)
                for text, state in zip(words, states, strict=True)
            ]
        else:
            prompts = [self.text.tokenize(text, PI0_TEXT) for text in words]
        tokens, mask = (np.stack([getattr(p, n) for p in prompts]) for n in ("tokens", "mask"))
        if pi05:
            places = _places_needed(mask)
            tokens, mask = tokens[:, :places], mask[:, :places]
        return tokens.astype(np.int32), mask, np.zeros_like(tokens), np.zeros_like(mask)

    def _counts(self, tokens: np.ndarray, in_postfix: np.ndarray) -> np.ndarray:
        counts = np.full(tokens.shape, -1, np.int32)
        if self.fast is None:
            return counts
        marker = len(self.text.encode(ACTION_MARKER))
        for row, (ids, postfix) in enumerate(zip(tokens, in_postfix, strict=True)):
            last = int(np.argmax(postfix)) + marker - 1
            # A character may be two bytes, a token each: half a coefficient.
            written = np.cumsum(
                [0.0, *(self._num_coefficients.get(token, 0.0) for token in ids[last + 1 :])]
            )
            full = np.flatnonzero(written == self._config.action_horizon * self._config.action_dim)
            length = full[0] + 1 if len(full) else np.sum(postfix) - marker + 1
            counts[row, last : last + length] = written[:length]
        return counts

    def _numbers(self, tokens: np.ndarray, in_postfix: np.ndarray, count: int) -> np.ndarray:
        found = np.zeros((len(tokens), count), np.int32)
        if self.fast is None:
            return found
        digit = np.isin(tokens, self._digits) & ~in_postfix
        ends = digit & ~np.roll(digit, -1, axis=1)
        for row, places in enumerate(ends):
            found[row] = np.flatnonzero(places)[-count:]
        return found


def _upcoming(actions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The coefficients as FAST orders them, zeros beyond the last."""
    coefficients = np.asarray(scipy.fft.dct(actions, axis=1, norm="ortho")).reshape(
        len(actions), -1
    )
    coefficients = np.pad(coefficients, ((0, 0), (0, UPCOMING)))
    at = np.maximum(counts, 0)[:, :, None] + np.arange(UPCOMING)
    return coefficients[np.arange(len(coefficients))[:, None, None], at].astype(np.float32)


def _places_needed(mask: np.ndarray) -> int:
    """As many places as the longest text of mask [B, L] needs, in steps that compile few times."""
    return -(-int(mask.sum(axis=1).max()) // TEXT_STEP) * TEXT_STEP


def _patches(looks: Looks, patch: int) -> np.ndarray:
    """The patch of each cube's centre, int32 [n, C, 3]; -1 where it is out of the picture, but for
    the table's camera (the first) the nearest one."""
    size = looks.images.shape[2]
    pixels, row = np.nan_to_num(looks.pixels, nan=-1.0), size // patch
    inside = ((pixels >= 0) & (pixels < size)).all(-1)
    inside[:, 0] = True
    columns, rows = np.moveaxis(np.clip(pixels // patch, 0, row - 1).astype(np.int32), -1, 0)
    return np.where(inside, rows * row + columns, -1)
