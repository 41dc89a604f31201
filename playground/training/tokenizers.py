"""Trains the bundled policies' tokenizers: `python -m playground.training.tokenizers`.

A sentencepiece model with PaliGemma's conventions but a vocabulary of 2,432 pieces instead of
257,152, so that the embedding of a small policy stays small, while `models/tokenizer.py` serves
both. Its text is written here: instructions for a table with coloured cubes in many wordings, and
general English about robots, homes and kitchens, so that a prompt of one's own stays in words.
`fit_fast` makes the matching FAST tokenizer from demonstrations.
"""

import collections
import dataclasses
import io
import itertools
import random
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers as library

from models.byte_alphabet import CHARACTER_OF_BYTE
from models.fast_tokenizer import FIRST_SURROGATE, FastActionTokenizer, dct_coefficients
from models.tokenizer import NUM_LOC, NUM_SEG
from playground.assets import ASSETS

FOLDER = ASSETS / "tokenizer"
MODEL = FOLDER / "paligemma_small.model"
FAST = FOLDER / "fast"

TEXT_VOCAB = 1280  # 4 special, 7 white space, 256 bytes and 1,013 learned pieces
FAST_VOCAB = 1024  # every FAST id has a <loc> piece of its own

# --- the text -----------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


COLOURS = _words("red green blue yellow orange purple pink white black brown grey gray")
CUBES = _words("cube block box brick")
TOUCH = (
    "touch {}",
    "tap {}",
    "poke {}",
    "reach for {}",
    "reach {}",
    "point at {}",
    "go to {}",
    "move to {}",
    "move the gripper to {}",
    "move your hand to {}",
    "put the gripper on {}",
    "make contact with {}",
)
PICK_UP = (
    "pick up {}",
    "pick {} up",
    "grab {}",
    "grasp {}",
    "lift {}",
    "lift up {}",
    "lift {} off the table",
    "take {}",
    "get {}",
    "hold {}",
    "raise {}",
    "raise {} into the air",
    "hold {} up",
)
PUSH = (
    "push {} {}",
    "push {} to the {}",
    "push {} towards the {}",
    "slide {} {}",
    "slide {} to the {}",
    "move {} {}",
    "move {} to the {}",
    "nudge {} to the {}",
    "shove {} {}",
    "sweep {} to the {}",
)
BEFORE = ("please ", "now ", "then ", "can you ", "could you ", "robot, ", "i want you to ")
BEFORE += ("carefully ", "slowly ", "gently ", "quickly ", "next, ", "first ")
AFTER = (".", " please", " now", "!", "?", " on the table", " with the left arm", " slowly")
AFTER += (" with the right arm", " with your left hand", " with your right hand", " again")

VERBS = _words("""
put place move bring take give hand pass carry drop throw stack unstack insert remove open close
shut push pull press turn rotate twist flip fold unfold wipe clean wash dry pour stir mix cut slice
peel scoop spread cover uncover fill empty pack unpack sort arrange align hang load unload plug
unplug switch wave point look find show stop wait start go come return reset hold release drag lean
""")
ADJECTIVES = _words("""
small large big little long short tall round square flat empty full hot cold clean dirty wet dry
open closed left right upper lower top bottom middle front back first second third last nearest
other same soft hard heavy light dark silver golden wooden metal plastic glass paper striped
""")
NOUNS = _words("""
table desk floor shelf drawer cabinet cupboard door window counter sink stove oven microwave fridge
toaster kettle pot pan lid bowl plate dish cup mug glass bottle jar can carton spoon fork knife
spatula ladle whisk sponge cloth towel napkin tray basket bin bag box rack board soap water milk
juice coffee tea sugar salt pepper rice bread butter cheese egg apple banana orange lemon tomato
potato carrot onion corn grape strawberry sandwich pizza cake cookie chocolate candy cereal soup
sauce robot arm gripper hand finger wrist elbow shoulder joint camera cube block ball ring peg hole
stick rope cable tape pen pencil marker paper book toy car duck bear doll shirt sock shoe hat lamp
light switch button handle wheel screw bolt screwdriver hammer wrench tool battery phone laptop
keyboard mouse clock vase flower plant pillow blanket bed chair sofa wall corner edge side middle
left right top bottom front back centre line circle square triangle tower pile row object thing
something anything everything nothing person people home kitchen room garden
""")
LINKS = ("in", "on", "into", "onto", "inside", "under", "over", "above", "below", "behind")
LINKS += ("beside", "near", "next to", "in front of", "on top of", "from", "off", "out of")
LINKS += ("to", "towards", "away from", "against", "around", "across", "through", "between")
LINKS += ("to the left of", "to the right of", "at", "with", "by", "as far as", "until it reaches")
TALK = (
    "do nothing",
    "do not move",
    "do not touch {0}",
    "don't touch {0}",
    "stay where you are",
    "what is {0} doing",
    "where is {0}",
    "which one is {0}",
    "what do you see",
    "do you see {0}",
    "is there anything under {0}",
    "it is not {0}, it is {1}",
    "not {0} but {1}",
    "{0} and {1}",
    "both {0} and {1} at the same time",
    "one of them, either {0} or {1}",
    "wave hello",
    "hello",
    "dance for me",
    "write your name",
    "go back home",
    "go to the start position and wait",
    "use both arms",
    "use only your left arm",
    "if you can see {0}, pick it up, else do nothing",
    "after that, put it down again",
    "before you start, look at {0}",
    "every cube but {0}",
    "all of the cubes",
    "the one that is nearest to {0}",
    "i would like {0} because they have no more",
    "make {0} like {1}",
    "the colour of {0}",
    "something of another color",
    "tidy up the table",
    "clean up this mess",
    "help me with {0}",
    "thank you, that was very good",
)


def sentences(count: int = 40_000, seed: int = 0) -> Iterator[str]:
    """The text the model is trained on: half table instructions, half general English, and now and
    then the words of the prompt formats. The same for the same arguments."""
    draw = random.Random(seed)

    def cube() -> str:
        return f"the {draw.choice(COLOURS)} {draw.choice(CUBES)}"

    def thing() -> str:
        size = draw.choice(("", "", f"{draw.choice(ADJECTIVES)} "))
        colour = draw.choice(("", "", f"{draw.choice(COLOURS)} "))
        plural = draw.choice(("", "", "", "s"))
        article = draw.choice(("the", "the", "a", "your", "this"))
        return f"{article} {size}{colour}{draw.choice(NOUNS)}{plural}"

    def instruction() -> str:
        wordings = draw.choice((TOUCH, PICK_UP, PUSH))
        return draw.choice(wordings).format(cube(), draw.choice(("left", "right")))

    def general() -> str:
        if draw.random() < 0.35:
            return draw.choice(TALK).format(thing(), thing())
        first = f"{draw.choice(VERBS)} {thing()}"
        return f"{first} {draw.choice(LINKS)} {thing()}" if draw.random() < 0.7 else first

    for index in range(count):
        text = instruction() if index % 2 else general()
        if draw.random() < 0.5:
            text = draw.choice(BEFORE) + text
        if draw.random() < 0.4:
            text = text + draw.choice(AFTER)
        if draw.random() < 0.1:
            text = text[0].upper() + text[1:]
        if draw.random() < 0.05:
            bins = " ".join(str(draw.randrange(-1, 256)) for _ in range(8))
            text = f"Task: {text}, State: {bins};"
        yield text
        if index % 20 == 0:
            yield "Action: "


# --- the models ---------------------------------------------------------------------------------


def train(vocab_size: int = TEXT_VOCAB, count: int = 40_000) -> bytes:
    """The sentencepiece model file: text pieces, then <loc0000>.. and <seg000>.. as PaliGemma has
    them. The same bytes for the same arguments and sentencepiece version."""
    white_space = ["\n" * n for n in (1, 2, 3)] + ["▁" * n for n in (2, 3, 4, 5)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(count)),
        model_writer=out,
        model_type="bpe",
        vocab_size=vocab_size,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=white_space,
        required_chars="".join(sorted(set(string.printable) - set(string.whitespace))),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    added = [f"<loc{i:04}>" for i in range(NUM_LOC)] + [f"<seg{i:03}>" for i in range(NUM_SEG)]
    return out.getvalue() + b"".join(map(more_piece, added))


def more_piece(piece: str, *, used: bool = True) -> bytes:
    """One more piece, as bytes to append to a model file: entries of protobuf's repeated fields
    may stand anywhere. ModelProto.pieces is field 1; a piece's fields are 1 text, 2 score, 3 type,
    and type 4 is USER_DEFINED, type 5 UNUSED: never found in a text."""
    text = piece.encode()
    kind = 4 if used else 5
    entry = bytes([0x0A, len(text)]) + text + b"\x15\x00\x00\x00\x00" + bytes([0x18, kind])
    return bytes([0x0A, len(entry)]) + entry


def filled_up(model: bytes, vocab_size: int) -> bytes:
    """The model file with unused pieces before <loc0000>, so that it has as many in all as a
    larger model's table has rows."""
    known = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    place = model.index(more_piece("<loc0000>"))
    filler = (more_piece(f"<filler{i:06}>", used=False) for i in range(vocab_size - known))
    return model[:place] + b"".join(filler) + model[place:]


def fit_action_tokenizer(
    chunks: Iterable[np.ndarray],
    vocab_size: int = FAST_VOCAB,
    scale: float = 10,
    group: int | None = None,
) -> FastActionTokenizer:
    """A FAST tokenizer for chunks like these (float [H, D] each, normalised, of one shape).

    Two choices differ from the published fit. Every character that the range of coefficients needs
    is in the vocabulary, and the range reaches half as far again as the data, so nothing in it is
    lost (the published fit leaves holes where a value does not occur). And a token is one
    coefficient, or a common group of a frequency's coefficients (`group` dimensions, such as an
    arm's; None: all), or any number of frequencies with nothing but zeros: never two or three
    coefficients. A model that writes tokens must reach H x D coefficients exactly, and so it counts
    groups, and tokens in a group that it spells out.

    Raises ValueError for chunks of several shapes, too many coefficients, too few entries.
    """
    chunks = list(chunks)
    shapes = {np.shape(chunk) for chunk in chunks}
    if len(shapes) != 1:
        raise ValueError(
            f"fitting FAST needs at least one chunk, all of one shape; {sorted(shapes)} came"
        )
    ((horizon, dim),) = shapes
    codes = np.stack([dct_coefficients(chunk, scale) for chunk in chunks])
    low, high = min(3 * int(codes.min()) // 2, -1), max(3 * int(codes.max()) // 2, 1)
    if high - low >= FIRST_SURROGATE:
        raise ValueError(f"coefficients from {low} to {high} are too many: lower the scale")
    entries, merges = _characters(chr(code) for code in range(high - low + 1))
    entries += [_spelled(chr(-low) * dim * count) for count in range(1, horizon + 1)]
    if vocab_size < len(entries):
        raise ValueError(
            f"vocab_size {vocab_size} is too small: coefficients from {low} to {high} and "
            f"{horizon} lengths of zeros need {len(entries)} entries; raise it or lower the scale"
        )
    frequencies = codes.reshape(-1, dim)
    groups = frequencies[frequencies.any(axis=1)].reshape(-1, group or dim)
    common = collections.Counter(map(tuple, groups.tolist())).most_common()
    common.sort(key=lambda found: (-found[1], found[0]))  # the same order every time
    words = (_spelled("".join(chr(code - low) for code in word)) for word, _ in common)
    entries += itertools.islice(words, vocab_size - len(entries))
    bpe = _byte_pairs(entries, merges, dim, group or dim, zero=-low)
    return FastActionTokenizer(bpe, scale, low, dim)


def _spelled(text: str) -> str:
    """Text as the entries of a byte-level vocabulary spell it."""
    return "".join(CHARACTER_OF_BYTE[byte] for byte in text.encode())


def _characters(characters: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The entries for every byte of these characters and for each one of several bytes, and the
    merges that lead there."""
    spelled = [_spelled(character) for character in characters]
    entries, merges = dict.fromkeys(sorted({byte for text in spelled for byte in text})), []
    for text in spelled:
        for end in range(2, len(text) + 1):
            if text[:end] not in entries:
                entries[text[:end]] = None
                merges.append((text[: end - 1], text[end - 1]))
    return list(entries), merges


def _byte_pairs(
    entries: Sequence[str], merges: list[tuple[str, str]], dim: int, group: int, zero: int
) -> library.Tokenizer:
    """A BPE of these entries: zeros (of the character `zero`) over whole frequencies of `dim`
    characters and groups of `group` characters are one token each where there is an entry for
    them, and spelled out by characters otherwise."""
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    bpe = library.Tokenizer(library.models.BPE(vocabulary, merges, ignore_merges=True))
    empty = rf"(?:\x{{{zero:X}}}{{{dim}}})+"
    patterns = (rf"{empty}|[\s\S]{{{dim}}}", rf"\A{empty}\z|[\s\S]{{{group}}}")
    bpe.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            *(library.pre_tokenizers.Split(library.Regex(p), "isolated") for p in patterns),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = library.decoders.ByteLevel()
    return bpe


@dataclasses.dataclass(frozen=True, slots=True)
class FastFit:
    """How a fitted FAST tokenizer does on the chunks it was fitted on. tokens: ids a chunk, the
    median, the 95 % quantile and the maximum; error: the largest and the root mean square
    difference after the round trip, in normalised units."""

    tokens: tuple[float, float, float]
    error: tuple[float, float]


def fit_fast(
    chunks: Sequence[np.ndarray],
    folder: Path = FAST,
    vocab_size: int = FAST_VOCAB,
    scale: float = 10,
    group: int | None = None,
) -> FastFit:
    """Fits FAST on demonstrations and saves it. chunks: float [H, D] each, as the policy sees them:
    robot convention to the model's, offsets, quantile-normalised, not padded; the rest as in
    `fit_action_tokenizer`."""
    tokenizer = fit_action_tokenizer(chunks, vocab_size, scale, group)
    tokenizer.save(folder)
    lengths, errors = [], []
    for chunk in itertools.islice(chunks, 2000):
        ids = tokenizer.encode(chunk)
        lengths.append(len(ids))
        errors.append(tokenizer.decode(ids, *chunk.shape).actions - chunk)
    middle, most = np.quantile(lengths, (0.5, 0.95))
    flat = np.concatenate([error.ravel() for error in errors])
    return FastFit(
        tokens=(float(middle), float(most), float(max(lengths))),
        error=(float(np.abs(flat).max()), float(np.sqrt(np.mean(flat**2)))),
    )


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    MODEL.write_bytes(train())
    print(f"wrote {MODEL}: {TEXT_VOCAB + NUM_LOC + NUM_SEG} pieces")


if __name__ == "__main__":
    main()
