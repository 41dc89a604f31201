"""Text to token ids and back, and the prompts of pi0 and pi0.5; `fast_tokenizer.py` has pi0-FAST's.

Source: openpi's `models/tokenizer.py`. L tokens.
"""

import dataclasses
import operator
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece

from models.config import Convention

PAD, EOS, BOS, UNK = range(4)
STATE_BINS = 256
# PaliGemma's vocabulary ends with <loc0000>..<loc1023> <seg000>..<seg127>; FAST ids count down
# from the last <loc>.
NUM_LOC, NUM_SEG = 1024, 128

ACTION_MARKER, ACTION_END = "Action: ", "|"


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """tokens: int64 [L], PAD after the last; mask: bool [L], True on real tokens; text: what the
    real tokens say, so what the model reads; truncated: how many tokens were cut off at the end."""

    tokens: np.ndarray
    mask: np.ndarray
    text: str
    truncated: int


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
        ids = whole_numbers(ids)
        if outside := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"ids {outside[:5]} are outside the vocabulary of {self.vocab_size}")
        return ids

    def tokenize(self, prompt: str, max_len: int, state: np.ndarray | None = None) -> Prompt:
        """pi0's prompt, or with the normalised, unpadded state, float [S], pi0.5's.

        pi0:   BOS, the text, then a newline encoded on its own. LeRobot's text is left as it is,
               and its newline part of it.
        pi0.5: BOS, "Task: <text>, State: <bins>;" newline "Action: ".
        """
        text = clean_prompt(prompt).replace("\n", " ")
        if state is None and self.convention == "lerobot":
            ids = [BOS, *self.encode(prompt if prompt.endswith("\n") else prompt + "\n")]
        elif state is None:
            ids = [BOS, *self.encode(text), *self.encode("\n")]
        else:
            ids = [BOS, *self.encode(f"{task_and_state(text, state)}{ACTION_MARKER}")]
        kept = ids[: positive(max_len, "max_len")]
        return Prompt(
            tokens=padded(kept, max_len, np.int64),
            mask=padded([True] * len(kept), max_len, bool),
            text=self.decode(kept),
            truncated=len(ids) - len(kept),
        )


# --- helpers ------------------------------------------------------------------------------------


def clean_prompt(prompt: str) -> str:
    """A prompt as both families read it: without white space around it, `_` as a space."""
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt must be text, got {type(prompt).__name__}")
    return prompt.strip().replace("_", " ")


def task_and_state(text: str, state: np.ndarray) -> str:
    """What a prompt with the normalised state, float [S], in it begins with."""
    return f"Task: {text}, State: {' '.join(map(str, state_bins(state)))};\n"


def padded(values: list, length: int, dtype) -> np.ndarray:
    """[length]: the values, then zeros."""
    return np.array([*values, *[PAD] * (length - len(values))], dtype)


def positive(value: int, name: str) -> int:
    """The value; raises ValueError if it is below 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def whole_numbers(ids: Iterable[int]) -> list[int]:
    """The ids as Python's integers; raises ValueError for anything else."""
    try:
        return [operator.index(i) for i in ids]
    except TypeError as error:
        raise ValueError(f"token ids must be whole numbers: {error}") from error
