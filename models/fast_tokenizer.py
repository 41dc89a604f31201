"""Actions to token ids and back (FAST), and the prompts of pi0-FAST.

FastActionTokenizer  a chunk of actions as a short list of ids: DCT, rounding, byte-pair encoding
FastTokenizer        that and PaliGemma's joined: prompts, and generated ids back to actions

Sources: FAST, arXiv 2501.09747, section V; the published processor `physical-intelligence/fast`;
openpi's `models/tokenizer.py`. L tokens, H horizon (steps), D action dimensions.
"""

import codecs
import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy.fft
import tokenizers

from models.byte_alphabet import CHARACTER_OF_BYTE, piece_bytes
from models.decoding import Constraint
from models.tokenizer import (
    ACTION_END,
    ACTION_MARKER,
    BOS,
    EOS,
    NUM_LOC,
    NUM_SEG,
    UNK,
    PaligemmaTokenizer,
    clean_prompt,
    padded,
    positive,
    task_and_state,
    whole_numbers,
)

FIRST_SURROGATE = 0xD800  # the first of the code points that are no characters


@dataclasses.dataclass(frozen=True, slots=True)
class FastPrompt:
    """A Prompt of pi0-FAST. ar_mask: int64 [L], 1 on the causal postfix (the actions); loss_mask:
    bool [L], True there; text: what the prefix says, without the actions."""

    tokens: np.ndarray
    mask: np.ndarray
    ar_mask: np.ndarray
    loss_mask: np.ndarray
    text: str
    truncated: int


@dataclasses.dataclass(frozen=True, slots=True)
class Decoding:
    """What FAST ids decode to. actions: float64 [H, D], or None with the reason in `failure`.

    skipped: ids beyond the vocabulary. openpi drops them without a word and decodes the rest, and
    so do we, but the caller sees them: a chunk that came with some deserves a warning.
    """

    actions: np.ndarray | None
    failure: str | None
    skipped: tuple[int, ...] = ()


class FastActionTokenizer:
    """FAST: chunks of normalised actions to ids of a small vocabulary, and back.

    A chunk goes through an orthonormal DCT along time; the coefficients, times `scale` and rounded,
    minus `min_token`, become characters, frequency by frequency with all dimensions of a frequency
    together; byte-level BPE joins those into ids.
    """

    def __init__(
        self, bpe: tokenizers.Tokenizer, scale: float, min_token: int, row: int | None = None
    ):
        """row: the D of chunks whose frequencies no token crosses, but for tokens of zeros; None
        where merges go anywhere, as in the published fit."""
        self.bpe, self.scale, self.min_token, self.row = bpe, scale, min_token, row
        self.vocab_size: int = bpe.get_vocab_size()
        self._bytes: list[bytes] = []
        for i in range(self.vocab_size):
            if (piece := bpe.id_to_token(i)) is None:
                raise ValueError(f"the action vocabulary has no entry for id {i}")
            self._bytes.append(piece_bytes(piece))

    @classmethod
    def load(cls, folder: str | Path) -> "FastActionTokenizer":
        """Reads `tokenizer.json` and `processor_config.json`, the layout of the published FAST.
        Where transformers 5 saved them, as LeRobot does, the first lies in `bpe_tokenizer/`.

        Raises ValueError that names the file and what is wrong with it.
        """
        folder = Path(folder)
        path = folder / "bpe_tokenizer" / "tokenizer.json"
        path = path if path.is_file() else folder / "tokenizer.json"
        try:
            bpe = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
        except OSError as error:
            raise ValueError(f"no FAST tokenizer in {folder}: {error}") from error
        except Exception as error:  # the library raises plain Exception for a bad file
            raise ValueError(f"{path} does not parse: {error}") from error
        path = folder / "processor_config.json"
        try:
            config = json.loads(path.read_text("utf-8"))
            scale, min_token = config["scale"], config["min_token"]
            row = config.get("tokens_end_every")
            if not isinstance(min_token, int) or not scale > 0:
                raise ValueError(f"scale {scale!r} and min_token {min_token!r}")
            if row is not None and not (isinstance(row, int) and row > 0):
                raise ValueError(f"tokens_end_every {row!r}, neither null nor a number from 1 on")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must give a positive scale and an integer min_token: {error!r}"
            ) from error
        return cls(bpe, scale, min_token, row)

    def save(self, folder: str | Path) -> None:
        """Writes what `load` reads: the published layout, and `row` as `tokens_end_every`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.bpe.save(str(folder / "tokenizer.json"))
        config = {
            "action_dim": None,
            "min_token": self.min_token,
            "scale": self.scale,
            "time_horizon": None,
            "tokens_end_every": self.row,
            "vocab_size": self.vocab_size,
        }
        (folder / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    def encode(self, chunk: np.ndarray) -> list[int]:
        """Ids of a chunk of normalised actions, [H, D], any float or integer type.

        Raises ValueError where the published processor loses data silently: coefficients below
        min_token (it clamps them), and characters without an entry (it drops them, which shifts
        all that follow); also for NaN, infinity and wrong shapes.
        """
        coefficients = dct_coefficients(chunk, self.scale)
        codes = coefficients - self.min_token
        # No tokenizer's range comes near the code points that are no characters.
        lost = (codes < 0) | (codes >= FIRST_SURROGATE)
        if not lost.any():
            text = "".join(map(chr, codes))
            ids = self.bpe.encode(text, add_special_tokens=False).ids
            if self.joined(ids) == text.encode():
                return ids
            lost = [self._lacks(character) for character in text]
        values = sorted(set(coefficients[np.asarray(lost)].tolist()))
        raise ValueError(
            f"coefficients {values[:8]} have no token here (smallest {self.min_token}); are the "
            "actions normalised with the stats this tokenizer was fitted with?"
        )

    def decode(self, ids: Sequence[int], horizon: int, dim: int) -> Decoding:
        """The actions of ids, [horizon, dim], or why there are none.

        It fails when ids are negative, when bytes do not make whole characters (the published
        processor reads U+FFFD there, an action in the thousands) and when the number of
        coefficients is not horizon x dim. A swapped horizon and dim cannot be noticed.
        """
        ids, expected = whole_numbers(ids), positive(horizon, "horizon") * positive(dim, "dim")
        skipped = tuple(i for i in ids if i >= self.vocab_size)
        data, reasons = self.joined(ids), []
        if negative := [place for place in enumerate(ids) if place[1] < 0]:
            places = ", ".join(f"{i} at position {position}" for position, i in negative[:5])
            reasons.append(f"ids below zero are no action tokens: {places}")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            text = data.decode(errors="replace")
            ends = itertools.accumulate(len(self.token_bytes(i)) for i in ids)
            position = next(p for p, end in enumerate(ends) if end > error.start)
            reasons.append(
                f"id {ids[position]} at position {position} holds part of a character only, and "
                "the ids beside it do not complete it"
            )
        if len(text) != expected:
            reasons.append(
                f"{len(text)} coefficients came, {expected} were expected "
                f"({horizon} steps x {dim} dimensions)"
            )
        if reasons and skipped:
            beyond = ", ".join(map(str, skipped[:5]))
            reasons.append(f"ids beyond the {self.vocab_size} action tokens were skipped: {beyond}")
        if reasons:
            return Decoding(None, "; ".join(reasons), skipped)
        return Decoding(self._actions([text], horizon, dim)[0], None, skipped)

    def decode_partials(
        self, parts: Sequence[Sequence[int] | None], horizon: int, dim: int
    ) -> list[np.ndarray | None]:
        """Each chunk as far as ids go, float64 [horizon, dim]: coefficients to come are zero.

        Low frequencies come first, so this starts as each dimension's mean and sharpens. None for
        None, while there is no coefficient yet, and where `decode` could only fail.
        """
        size = positive(horizon, "horizon") * positive(dim, "dim")
        texts = ["" if ids is None else self._partial_text(whole_numbers(ids)) for ids in parts]
        decodes = [0 < len(text) <= size for text in texts]
        chunks = iter(self._actions([*itertools.compress(texts, decodes)], horizon, dim))
        return [next(chunks) if found else None for found in decodes]

    def _partial_text(self, ids: list[int]) -> str:
        """The whole characters that ids write; "" where they are no text."""
        if any(i < 0 for i in ids):
            return ""
        try:
            return codecs.getincrementaldecoder("utf-8")().decode(self.joined(ids))
        except UnicodeDecodeError:
            return ""

    def complete(self, token: int, missing: int) -> tuple[int, int] | None:
        """Of an id that follows a character of which `missing` bytes are still to come: (how many
        coefficients it completes, how many bytes are missing after it); None where its bytes
        cannot follow."""
        completed = 0
        for byte in self.token_bytes(token):
            if missing and 0x80 <= byte < 0xC0:
                missing -= 1
            elif not missing and (byte < 0x80 or 0xC2 <= byte < 0xF5):
                missing = (byte >= 0xC2) + (byte >= 0xE0) + (byte >= 0xF0)
            else:
                return None
            completed += not missing
        return completed, missing

    def coefficients(self, token: int) -> tuple[int, ...] | None:
        """The DCT coefficients (times scale) an id stands for; None for part of a character."""
        try:
            return tuple(ord(c) + self.min_token for c in self.token_bytes(token).decode())
        except UnicodeDecodeError:
            return None

    def _actions(self, texts: Sequence[str], horizon: int, dim: int) -> np.ndarray:
        """Float64 [texts, H, D]; coefficients that a text does not have are zero."""
        coefficients = np.zeros((len(texts), horizon * dim))
        for row, text in zip(coefficients, texts, strict=True):
            row[: len(text)] = [ord(character) + self.min_token for character in text]
        spectrum = coefficients.reshape(-1, horizon, dim) / self.scale
        return np.asarray(scipy.fft.idct(spectrum, axis=1, norm="ortho"))

    def _lacks(self, character: str) -> bool:
        entries = (CHARACTER_OF_BYTE[byte] for byte in character.encode())
        return any(self.bpe.token_to_id(entry) is None for entry in entries)

    def joined(self, ids: Iterable[int]) -> bytes:
        """What these tokens write, one after the other: UTF-8 of the coefficients' characters."""
        return b"".join(self.token_bytes(i) for i in ids)

    def token_bytes(self, token: int) -> bytes:
        """What one token writes; nothing for a number that is none of them."""
        return self._bytes[token] if 0 <= token < self.vocab_size else b""


class FastTokenizer:
    """pi0-FAST's prompts over both tokenizers. FAST id t is the id `vocab_size - 1 - 128 - t`: the
    pieces from the last <loc> downwards.

    Raises ValueError if the sentencepiece model's last pieces do not carry FAST ids through text.
    """

    def __init__(self, paligemma: PaligemmaTokenizer, fast: FastActionTokenizer):
        self.paligemma, self.fast = paligemma, fast
        top = paligemma.vocab_size - 1 - NUM_SEG
        carriers = [top - t for t in range(min(fast.vocab_size, NUM_LOC))]
        # As control or ordinary pieces they would vanish, or fall apart into letters, on their
        # way through text, and every chunk would fail to decode.
        if carriers[-1] < 0 or paligemma.encode(paligemma.decode(carriers)) != carriers:
            raise ValueError(
                f"this sentencepiece model does not carry {fast.vocab_size} action tokens: the "
                f"{len(carriers)} pieces below its last {NUM_SEG} must be user-defined <loc> pieces"
            )

    def tokenize(
        self, prompt: str, state: np.ndarray, max_len: int, actions: np.ndarray | None = None
    ) -> FastPrompt:
        """The prompt for a normalised, unpadded state, float [S]; for training with the normalised
        actions, [H, D], as postfix.

        Prefix: BOS, "Task: <lower-case text>, State: <bins>;" newline. Postfix: "Action: ", the
        actions' ids, "|", EOS, each encoded on its own. LeRobot's text keeps its case and becomes
        one line, and another BOS ends its prefix, whatever had to be cut off.
        """
        encode, text = self.paligemma.encode, clean_prompt(prompt)
        start, postfix = [], []
        if self.paligemma.convention == "lerobot":
            if actions is not None:
                raise ValueError("prompts for training are written by openpi's rules only")
            # There it follows the padding, which nobody attends to and which takes no positions.
            text, start = text.replace("\n", " "), [BOS]
        else:
            text = text.lower()
        prefix = [BOS, *encode(task_and_state(text, state))]
        if actions is not None:
            ids = map(self.swap, self.fast.encode(actions))
            postfix = [*encode(ACTION_MARKER), *ids, *encode(ACTION_END), EOS]
        written = [*prefix, *postfix]
        kept = [*written[: positive(max_len, "max_len") - len(start)], *start]
        in_postfix = [position >= len(prefix) + len(start) for position in range(len(kept))]
        return FastPrompt(
            tokens=padded(kept, max_len, np.int64),
            mask=padded([True] * len(kept), max_len, bool),
            ar_mask=padded(in_postfix, max_len, np.int64),
            loss_mask=padded(in_postfix, max_len, bool),
            text=self.paligemma.decode(kept[: len(prefix)]),
            truncated=len(written) + len(start) - len(kept),
        )

    def swap(self, token: int) -> int:
        """A FAST id to its id in the language vocabulary, or back: the map is its own inverse."""
        return self.paligemma.vocab_size - 1 - NUM_SEG - token

    def written_ids(self) -> list[int]:
        """Every id that a training target has: "Action: ", FAST's, "|" and the end."""
        words = [*self.paligemma.encode(ACTION_MARKER), *self.paligemma.encode(ACTION_END), EOS]
        return sorted({*words, *map(self.swap, range(self.fast.vocab_size))})

    def action_ids(self, tokens: Iterable[int]) -> list[int] | None:
        """The FAST ids in generated tokens (padding and EOS do no harm), or None before "Action: ".

        openpi's way: the ids become text; its part between the first "Action: " and the next one,
        the first "|" or the end is stripped and becomes ids again. LeRobot leaves them ids.
        """
        if self.paligemma.convention == "lerobot":
            return self._between_markers(list(tokens))
        _, marker, rest = self.paligemma.decode(tokens).partition(ACTION_MARKER)
        if not marker:
            return None
        part = rest.split(ACTION_MARKER)[0].split(ACTION_END)[0].strip()
        return [self.swap(token) for token in self.paligemma.encode(part)]

    def _between_markers(self, tokens: list[int]) -> list[int] | None:
        """FAST ids of what stands between "Action: " and "|" or the end, but for special tokens."""
        marker, end = map(self.paligemma.encode, (ACTION_MARKER, ACTION_END))
        if (begin := _find(marker, tokens)) is None:
            return None
        rest = tokens[begin + len(marker) :]
        return [self.swap(token) for token in rest[: _find(end, rest)] if token > UNK]

    def constraint(self, vocab_size: int, horizon: int, dim: int) -> Constraint:
        """What lets a model of `vocab_size` tokens write chunks [horizon, dim] that decode."""
        completed = np.full((4, vocab_size), -1, np.int32)
        missing, zeros = np.zeros_like(completed), np.zeros(vocab_size, bool)
        for action in range(self.fast.vocab_size):
            token = self.swap(action)
            zeros[token] = not any(self.fast.coefficients(action) or [True])
            for before in range(4):
                if (found := self.fast.complete(action, before)) is not None:
                    completed[before, token], missing[before, token] = found
        start, (end,) = map(self.paligemma.encode, (ACTION_MARKER, ACTION_END))
        return Constraint(
            completed=completed,
            missing=missing,
            zeros=zeros,
            num_coefficients=horizon * dim,
            per_group=dim if self.fast.row == dim else horizon * dim,
            start=tuple(start),
            end=end,
        )

    def extract_actions(self, tokens: Iterable[int], horizon: int, dim: int) -> Decoding:
        """The actions, normalised, [horizon, dim], that generated tokens hold, or why not."""
        tokens = list(tokens)
        ids = self.action_ids(tokens)
        if ids is None:
            text = self.paligemma.decode(tokens)
            shown = repr(text[:60]) + ("..." if len(text) > 60 else "")
            return Decoding(None, f"the generated text has no {ACTION_MARKER!r}: {shown}")
        return self.fast.decode(ids, horizon, dim)

    def extract_partials(
        self, tokens: Sequence[int], known: int, horizon: int, dim: int
    ) -> list[np.ndarray | None]:
        """`decode_partials` of a stream after each token behind the first `known`."""
        parts = [self.action_ids(tokens[: i + 1]) for i in range(known, len(tokens))]
        return self.fast.decode_partials(parts, horizon, dim)


# --- helpers ------------------------------------------------------------------------------------


def _find(part: list[int], tokens: list[int]) -> int | None:
    """Where `part` begins in the tokens, or None."""
    places = range(len(tokens) - len(part) + 1)
    return next((i for i in places if tokens[i : i + len(part)] == part), None)


def dct_coefficients(chunk: np.ndarray, scale: float) -> np.ndarray:
    """Rounded DCT coefficients of [H, D] times scale, int64 [H x D], frequency by frequency."""
    chunk = np.asarray(chunk)
    if chunk.ndim != 2 or 0 in chunk.shape:
        raise ValueError(f"a chunk has the shape [steps, dimensions], got {list(chunk.shape)}")
    coefficients = np.rint(np.asarray(scipy.fft.dct(chunk, axis=0, norm="ortho")) * scale)
    if not (np.abs(coefficients) < 2**31).all():
        raise ValueError("a chunk must hold finite, normalised actions; NaN or huge values came")
    return coefficients.astype(np.int64).ravel()
