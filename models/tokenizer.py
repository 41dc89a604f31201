"""Text and actions to token ids and back.

PaligemmaTokenizer  the prompt formats of pi0 and pi0.5, over a sentencepiece file
FastActionTokenizer a chunk of actions as a short list of ids: DCT, rounding, byte-pair encoding
FastTokenizer       both joined: the prompt of pi0-FAST, and its generated ids back to actions

Sources: openpi's `models/tokenizer.py`; FAST, arXiv 2501.09747, section V, and the published
processor `physical-intelligence/fast`. L tokens, H horizon (steps), D action dimensions.
"""

import codecs
import dataclasses
import itertools
import json
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy.fft
import sentencepiece
import tokenizers

from models.config import Convention

PAD, EOS, BOS, UNK = range(4)
STATE_BINS = 256
# PaliGemma's vocabulary ends with <loc0000>..<loc1023> <seg000>..<seg127>; FAST ids count down
# from the last <loc>.
NUM_LOC, NUM_SEG = 1024, 128

ACTION_MARKER, ACTION_END = "Action: ", "|"

FIRST_SURROGATE = 0xD800


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """tokens: int64 [L], PAD after the last; mask: bool [L], True on real tokens; text: what the
    real tokens say, so what the model reads; truncated: how many tokens were cut off at the end."""

    tokens: np.ndarray
    mask: np.ndarray
    text: str
    truncated: int


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


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Which tokens may come so that a chunk of H x D coefficients does, over a language vocabulary
    of V. A coefficient is a character of up to four bytes, and a token may hold part of one: p
    bytes may be still to come.

    told: int32 [4, V], how many coefficients a token completes where p bytes are still to come,
    -1 where it cannot follow; owed: int32 [4, V], how many bytes are to come after it; zeros:
    bool [V], tokens of nothing but zero coefficients; total: H x D; row: D where the tokenizer's
    tokens end with a frequency (all but those of zeros), else `total`; start, end: the ids of
    "Action: " and "|".
    """

    told: np.ndarray
    owed: np.ndarray
    zeros: np.ndarray
    total: int
    row: int
    start: tuple[int, ...]
    end: int


def state_bins(state: np.ndarray) -> np.ndarray:
    """The normalised state, float [S], as int64 [S]: 256 equal bins on [-1, 1], their left edges
    included. As in openpi, 1 and above is bin 255 and anything below -1 is bin -1.

    Raises ValueError for values that are not finite (openpi makes NaN bin 255).
    """
    state = np.asarray(state, np.float64)
    if state.ndim != 1 or not np.isfinite(state).all():
        raise ValueError(
            f"the prompt's state must be a vector of finite numbers, got {state.tolist()}"
        )
    left_edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return np.searchsorted(left_edges, state, side="right") - 1


class PaligemmaTokenizer:
    """A sentencepiece file with PaliGemma's special ids: <pad> 0, <eos> 1, <bos> 2, <unk> 3.

    Raises ValueError if the file is missing, unreadable or has other special ids. The library has
    parsed crafted files unsafely before: open only files of known origin.
    """

    def __init__(self, path: str | Path, convention: Convention = "openpi"):
        """convention: whose rules prompts are written by."""
        self.convention = convention
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot read a sentencepiece model from {path}: {error}") from error
        model = self._model
        special = (model.pad_id(), model.eos_id(), model.bos_id(), model.unk_id())
        if special != (PAD, EOS, BOS, UNK):
            raise ValueError(
                f"{path} has pad, eos, bos and unk at {special}; PaliGemma has them at 0, 1, 2, 3"
            )
        self.vocab_size: int = model.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of any text, without BOS or EOS. Lone surrogates are read as U+FFFD."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._model.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control pieces (<pad>, <eos>, <bos>) vanish, as in sentencepiece."""
        return self._model.decode(self._check(ids))

    def piece(self, token: int) -> str:
        """The piece as it stands in the vocabulary: "<eos>", "▁cube" (▁ is a space), "<0x0A>"."""
        return self._model.id_to_piece(*self._check([token]))

    def _check(self, ids: Iterable[int]) -> list[int]:
        ids = _integers(ids)
        if outside := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"ids {outside[:5]} are outside the vocabulary of {self.vocab_size}")
        return ids

    def tokenize(self, prompt: str, max_len: int, state: np.ndarray | None = None) -> Prompt:
        """pi0's prompt, or with the normalised, unpadded state, float [S], pi0.5's.

        pi0:   BOS, the text, then a newline encoded on its own. LeRobot's text is left as it is,
               and its newline part of it.
        pi0.5: BOS, "Task: <text>, State: <bins>;" newline "Action: ".
        """
        text = _clean(prompt).replace("\n", " ")
        if state is None and self.convention == "lerobot":
            ids = [BOS, *self.encode(prompt if prompt.endswith("\n") else prompt + "\n")]
        elif state is None:
            ids = [BOS, *self.encode(text), *self.encode("\n")]
        else:
            ids = [BOS, *self.encode(f"{_task(text, state)}{ACTION_MARKER}")]
        kept = ids[: _positive(max_len, "max_len")]
        return Prompt(
            tokens=_padded(kept, max_len, np.int64),
            mask=_padded([True] * len(kept), max_len, bool),
            text=self.decode(kept),
            truncated=len(ids) - len(kept),
        )


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
        self._bpe, self.scale, self.min_token, self.row = bpe, scale, min_token, row
        self.vocab_size: int = bpe.get_vocab_size()
        pieces = [bpe.id_to_token(i) for i in range(self.vocab_size)]
        if None in pieces:
            raise ValueError(f"the action vocabulary has no entry for id {pieces.index(None)}")
        self._bytes = [_piece_bytes(piece) for piece in pieces]

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
        self._bpe.save(str(folder / "tokenizer.json"))
        config = {
            "action_dim": None,
            "min_token": self.min_token,
            "scale": self.scale,
            "time_horizon": None,
            "tokens_end_every": self.row,
            "vocab_size": self.vocab_size,
        }
        (folder / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    @classmethod
    def fit(
        cls, chunks: Iterable[np.ndarray], vocab_size: int = 1024, scale: float = 10
    ) -> "FastActionTokenizer":
        """A tokenizer for chunks like these (float [H, D] each, normalised, of one D).

        Two choices differ from the published fit. Every byte that the range of coefficients needs
        is in the vocabulary, and the range reaches half as far again as the data, so nothing in it
        is lost (the published fit leaves holes where a value was not seen). And characters merge
        within a frequency, zeros across any number of empty ones, instead of by the letters and
        digits that their code points happen to be: a model that writes tokens must reach H x D
        coefficients exactly, and so it counts frequencies, not hundreds of coefficients.
        """
        chunks = list(chunks)
        dims = {np.shape(chunk)[-1] for chunk in chunks}
        if len(dims) != 1:
            raise ValueError(
                f"fitting FAST needs at least one chunk, all of one dimension; {sorted(dims)} came"
            )
        rows = [_coefficients(chunk, scale) for chunk in chunks]
        low = 3 * min(int(row.min()) for row in rows) // 2
        high = 3 * max(int(row.max()) for row in rows) // 2
        low, high = min(low, -1), max(high, 1)
        if high - low >= FIRST_SURROGATE:
            raise ValueError(f"coefficients from {low} to {high} are too many: lower the scale")
        used = {byte for code in range(high - low + 1) for byte in chr(code).encode()}
        if vocab_size < len(used):
            raise ValueError(
                f"vocab_size {vocab_size} is too small: coefficients from {low} to {high} need "
                f"{len(used)} byte entries before any merge; raise it or lower the scale"
            )
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        (dim,), zero = dims, rf"\x{{{-low:X}}}"
        frequencies = tokenizers.Regex(rf"(?:{zero}{{{dim}}})+|[\s\S]{{{dim}}}")
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Split(frequencies, "isolated"),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(_CHARACTER_OF_BYTE[byte] for byte in used),
        )
        bpe.train_from_iterator(("".join(map(chr, row - low)) for row in rows), trainer)
        return cls(bpe, scale, low, dim)

    def encode(self, chunk: np.ndarray) -> list[int]:
        """Ids of a chunk of normalised actions, [H, D], any float or integer type.

        Raises ValueError where the published processor loses data silently: coefficients below
        min_token (it clamps them), and characters without an entry (it drops them, which shifts
        all that follow); also for NaN, infinity and wrong shapes.
        """
        coefficients = _coefficients(chunk, self.scale)
        codes = coefficients - self.min_token
        # No tokenizer's range comes near the code points that are no characters.
        lost = (codes < 0) | (codes >= FIRST_SURROGATE)
        if not lost.any():
            text = "".join(map(chr, codes))
            ids = self._bpe.encode(text, add_special_tokens=False).ids
            if self._join(ids) == text.encode():
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
        ids, expected = _integers(ids), _positive(horizon, "horizon") * _positive(dim, "dim")
        skipped = tuple(i for i in ids if i >= self.vocab_size)
        data, reasons = self._join(ids), []
        if negative := [place for place in enumerate(ids) if place[1] < 0]:
            places = ", ".join(f"{i} at position {position}" for position, i in negative[:5])
            reasons.append(f"ids below zero are no action tokens: {places}")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            text = data.decode(errors="replace")
            ends = itertools.accumulate(len(self._token_bytes(i)) for i in ids)
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
        return Decoding(self._actions(text, horizon, dim), None, skipped)

    def decode_partial(self, ids: Sequence[int], horizon: int, dim: int) -> np.ndarray | None:
        """The chunk as far as ids tell it, float64 [horizon, dim]: coefficients to come are zero.

        Low frequencies come first, so this starts as each dimension's mean and sharpens. None while
        there is no coefficient yet, and where `decode` could only fail.
        """
        ids, expected = _integers(ids), _positive(horizon, "horizon") * _positive(dim, "dim")
        if any(i < 0 for i in ids):
            return None
        try:
            text = codecs.getincrementaldecoder("utf-8")().decode(self._join(ids))
        except UnicodeDecodeError:
            return None
        if not 0 < len(text) <= expected:
            return None
        return self._actions(text, horizon, dim)

    def follow(self, token: int, owed: int) -> tuple[int, int] | None:
        """Of an id after which `owed` bytes of a character were still to come: (coefficients it
        completes, bytes to come after it); None where its bytes cannot follow."""
        told = 0
        for byte in self._token_bytes(token):
            if owed and 0x80 <= byte < 0xC0:
                owed -= 1
            elif not owed and (byte < 0x80 or 0xC2 <= byte < 0xF5):
                owed = (byte >= 0xC2) + (byte >= 0xE0) + (byte >= 0xF0)
            else:
                return None
            told += not owed
        return told, owed

    def coefficients(self, token: int) -> tuple[int, ...] | None:
        """The DCT coefficients (times scale) an id stands for; None for part of a character."""
        try:
            return tuple(ord(c) + self.min_token for c in self._token_bytes(token).decode())
        except UnicodeDecodeError:
            return None

    def _actions(self, text: str, horizon: int, dim: int) -> np.ndarray:
        coefficients = np.zeros(horizon * dim)
        coefficients[: len(text)] = [ord(character) + self.min_token for character in text]
        spectrum = coefficients.reshape(horizon, dim) / self.scale
        return scipy.fft.idct(spectrum, axis=0, norm="ortho")

    def _lacks(self, character: str) -> bool:
        entries = (_CHARACTER_OF_BYTE[byte] for byte in character.encode())
        return any(self._bpe.token_to_id(entry) is None for entry in entries)

    def _join(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._token_bytes(i) for i in ids)

    def _token_bytes(self, token: int) -> bytes:
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
        encode, text = self.paligemma.encode, _clean(prompt)
        start, postfix = [], []
        if self.paligemma.convention == "lerobot":
            if actions is not None:
                raise ValueError("prompts for training are written by openpi's rules only")
            # It comes after the padding there. Nobody sees that, and it takes no positions.
            text, start = text.replace("\n", " "), [BOS]
        else:
            text = text.lower()
        prefix = [BOS, *encode(_task(text, state))]
        if actions is not None:
            ids = map(self.swap, self.fast.encode(actions))
            postfix = [*encode(ACTION_MARKER), *ids, *encode(ACTION_END), EOS]
        written = [*prefix, *postfix]
        kept = [*written[: _positive(max_len, "max_len") - len(start)], *start]
        in_postfix = [position >= len(prefix) + len(start) for position in range(len(kept))]
        return FastPrompt(
            tokens=_padded(kept, max_len, np.int64),
            mask=_padded([True] * len(kept), max_len, bool),
            ar_mask=_padded(in_postfix, max_len, np.int64),
            loss_mask=_padded(in_postfix, max_len, bool),
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

    def grammar(self, vocab_size: int, horizon: int, dim: int) -> Grammar:
        """What lets a model of `vocab_size` tokens write chunks [horizon, dim] that decode."""
        told = np.full((4, vocab_size), -1, np.int32)
        owed, zeros = np.zeros_like(told), np.zeros(vocab_size, bool)
        for action in range(self.fast.vocab_size):
            token = self.swap(action)
            zeros[token] = not any(self.fast.coefficients(action) or [True])
            for before in range(4):
                if (found := self.fast.follow(action, before)) is not None:
                    told[before, token], owed[before, token] = found
        total = horizon * dim
        row = dim if self.fast.row == dim else total
        start, (end,) = map(self.paligemma.encode, (ACTION_MARKER, ACTION_END))
        return Grammar(told, owed, zeros, total, row, tuple(start), end)

    def is_complete(self, tokens: Iterable[int]) -> bool:
        """Whether the actions have ended with "|": later tokens change nothing."""
        _, marker, rest = self.paligemma.decode(tokens).partition(ACTION_MARKER)
        return bool(marker) and ACTION_END in rest

    def extract_actions(self, tokens: Iterable[int], horizon: int, dim: int) -> Decoding:
        """The actions, normalised, [horizon, dim], that generated tokens hold, or why not."""
        tokens = list(tokens)
        ids = self.action_ids(tokens)
        if ids is None:
            text = self.paligemma.decode(tokens)
            shown = repr(text[:60]) + ("..." if len(text) > 60 else "")
            return Decoding(None, f"the generated text has no {ACTION_MARKER!r}: {shown}")
        return self.fast.decode(ids, horizon, dim)

    def extract_partial(self, tokens: Iterable[int], horizon: int, dim: int) -> np.ndarray | None:
        """`extract_actions` for a stream still running: see FastActionTokenizer.decode_partial."""
        ids = self.action_ids(tokens)
        return None if ids is None else self.fast.decode_partial(ids, horizon, dim)


# --- helpers ------------------------------------------------------------------------------------


def _clean(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt must be text, got {type(prompt).__name__}")
    return prompt.strip().replace("_", " ")


def _task(text: str, state: np.ndarray) -> str:
    return f"Task: {text}, State: {' '.join(map(str, state_bins(state)))};\n"


def _find(part: list[int], tokens: list[int]) -> int | None:
    """Where `part` begins in the tokens, or None."""
    places = range(len(tokens) - len(part) + 1)
    return next((i for i in places if tokens[i : i + len(part)] == part), None)


def _padded(values: list, length: int, dtype) -> np.ndarray:
    return np.array([*values, *[PAD] * (length - len(values))], dtype)


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _integers(ids: Iterable[int]) -> list[int]:
    try:
        return [operator.index(i) for i in ids]
    except TypeError as error:
        raise ValueError(f"token ids must be whole numbers: {error}") from error


def _coefficients(chunk: np.ndarray, scale: float) -> np.ndarray:
    """Rounded DCT coefficients of [H, D] times scale, int64 [H x D], frequency by frequency."""
    chunk = np.asarray(chunk)
    if chunk.ndim != 2 or 0 in chunk.shape:
        raise ValueError(f"a chunk has the shape [steps, dimensions], got {list(chunk.shape)}")
    coefficients = np.rint(scipy.fft.dct(chunk, axis=0, norm="ortho") * scale)
    if not (np.abs(coefficients) < 2**31).all():
        raise ValueError("a chunk must hold finite, normalised actions; NaN or huge values came")
    return coefficients.astype(np.int64).ravel()


# The byte-level alphabet of GPT-2's BPE, which FAST's vocabulary is written in: printable bytes
# stand for themselves, the others for the characters from 256 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHARACTER_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + index) for index, byte in enumerate(_HIDDEN)
}
_BYTE_OF_CHARACTER = {character: byte for byte, character in _CHARACTER_OF_BYTE.items()}


def _piece_bytes(piece: str) -> bytes:
    """What an entry of a byte-level vocabulary stands for. The published fit also left raw control
    characters in it: an entry outside the alphabet stands for its own text."""
    if all(character in _BYTE_OF_CHARACTER for character in piece):
        return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
    return piece.encode()
