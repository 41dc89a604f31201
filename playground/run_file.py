"""A run as a file: the recipe that repeats it, what came of it, and what it was given.

    recipe.json             what ran, on what and how, and digests of what came of it
    inputs/SHA256.png       each picture as it was given, named by its digest
    traces/POLICY-BADGE.npz everything measured (`playground.trace.load`)
    figures.html            the page's figures, in one file that needs nothing else
    causes.json             what the tab Causes measured on it, where it did
    left-out.txt            what is not here as it was, where the file would be too large to open

The ZIP holds all of these; the recipe alone is also a JSON file of its own, and lies in every
picture that the page saves, as a text chunk of the PNG.

    opened = read(Path("run.zip").read_bytes())
    again = {p.name: run(policies[p.name], observation(opened, p), opened.recipe.options) ...}
    verdicts(opened, again)

A run *repeats* when its chunk is equal bit for bit, as it is on an equal machine with equal
versions; elsewhere rounding differs, and it repeats when its tokens are equal and no normalised
value is further off than TOLERANCE of the policy's dtype. Files from strangers are taken apart
without trust: sizes are bounded, nothing is unpickled, nothing is written anywhere, and no name in
them is followed.
"""

import dataclasses
import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO, Literal, get_args

import numpy as np
from PIL import Image

from playground import codec
from playground import trace as traces
from playground.robots import transforms
from playground.trace import (
    MAX_PICTURES,
    Computation,
    Cut,
    DecodedToken,
    FastTrace,
    Options,
    RawObservation,
    SlotMode,
    Trace,
    image_digest,
    token_ids,
)

FORMAT, VERSION = "pi0-playground recipe", 4
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # of normalised actions
MAX_FILE = 64 << 20  # bytes of a file that is opened
MAX_INPUTS = 40 << 20  # bytes of the pictures in it
_MAX_RECIPE = 1 << 20  # the longest prompt takes 120 KB of JSON escapes
_MAX_MEMBERS = 64 + MAX_PICTURES
MAX_PIXELS = 2 * transforms.MAX_PIXELS  # of all pictures together
_MAX_TEXT = 100_000
MAX_NUMBERS = 131_072  # of a chunk: 32 samples of 128 steps and 32 dimensions
MAX_TOKENS = 4096


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """One policy of a run. modes: of every slot; image_sha256: of the slots with a picture
    (`playground.trace.image_digest`); computation: what it computed with; chunk: digest of the
    normalised actions, "" where FAST's tokens did not decode; tokens: digest of FAST's tokens, else
    ""."""

    name: str
    revision: str
    badge: str
    notice: str
    computation: Computation
    modes: dict[str, SlotMode]
    image_sha256: dict[str, str]
    chunk: str
    tokens: str


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """All that repeats a run of one or more policies on one observation."""

    robot: str
    prompt: str
    state: tuple[float, ...]
    options: Options
    policies: tuple[Ran, ...]
    versions: dict[str, str]


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """What a file held. pictures: by digest; outcomes: by policy, (normalised actions or None,
    tokens), {} without traces."""

    recipe: Recipe
    pictures: dict[str, np.ndarray]
    outcomes: dict[str, tuple[np.ndarray | None, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a policy's run repeated. how: "bits", "tolerance" or "no"; text: a sentence."""

    policy: str
    how: Literal["bits", "tolerance", "no"]
    text: str


# --- out ----------------------------------------------------------------------------------------


def of(found: Mapping[str, Trace]) -> Recipe:
    """The recipe of a run, from its traces by policy; raises ValueError if there are none, or if
    they are not of one run."""
    if not found:
        raise ValueError("there is no run to save: run the policies first")
    shared = [_shared(trace) for trace in found.values()]
    if any(other != shared[0] for other in shared):
        raise ValueError("these traces are of different runs: save them apart")
    policies = tuple(
        Ran(
            name=name,
            revision=trace.info.revision,
            badge=trace.info.badge,
            notice=trace.info.notice,
            computation=trace.info.computation,
            modes=dict(trace.inputs.modes),
            image_sha256=dict(trace.inputs.image_sha256),
            chunk=_digest(trace.actions_normalised),
            tokens=_digest(token_ids(trace) or None),
        )
        for name, trace in found.items()
    )
    return Recipe(**shared[0], policies=policies)


def _shared(trace: Trace) -> dict:
    """What is the same for all policies of a run."""
    return {
        "robot": trace.info.robot,
        "prompt": trace.inputs.prompt,
        "state": trace.inputs.state,
        "options": trace.options,
        "versions": trace.versions,
    }


def to_json(recipe: Recipe) -> str:
    """The recipe as the text that `from_json` takes."""
    tree = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(recipe)}
    return json.dumps(tree, indent=2, ensure_ascii=True) + "\n"


def write(
    file: BinaryIO,
    found: Mapping[str, Trace],
    pictures: Iterable[np.ndarray],
    figures: Mapping[str, str],
) -> None:
    """Writes the ZIP of a run, one that `read` takes.

    Where the pictures together are too large for that, the largest ones are written as the models
    saw them, scaled to fit, and the recipe names those: the same chunk comes of them. Of traces and
    figures those are left out that find no room. A file in it says so.

    pictures: as given, uint8 [height, width, 3]; figures: the text of further files, by name.
    """
    size = max((trace.info.image_size for trace in found.values()), default=1)
    inputs, names, words = _inputs(list(pictures), size)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("recipe.json", to_json(_renamed(of(found), names)))
        for digest, data in inputs.items():
            archive.writestr(_input(digest), data)
        for name, trace in found.items():
            member = f"traces/{filename(name, trace.info.badge)}.npz"
            words += _add(archive, member, _saved_trace(trace), zipfile.ZIP_STORED)
        for name, text in figures.items():
            words += _add(archive, name, text.encode(), zipfile.ZIP_DEFLATED)
        if words:
            archive.writestr("left-out.txt", "\n".join(words) + "\n")


def _inputs(
    pictures: Sequence[np.ndarray], size: int
) -> tuple[dict[str, bytes], dict[str, str], list[str]]:
    """(PNG files by digest, the digest of what was written by that of what was given, a sentence on
    each picture that was scaled). The small ones stay as they are, as far as there is room."""
    files: dict[str, bytes] = {}
    names: dict[str, str] = {}
    words: list[str] = []
    # What is left when each of them takes the model's square.
    pixels = MAX_PIXELS - len(pictures) * size**2
    room = MAX_INPUTS - 4 * len(pictures) * size**2
    for picture in sorted(pictures, key=lambda one: one.shape[0] * one.shape[1]):
        height, width = picture.shape[:2]
        data = _png(picture) if height * width <= pixels else None
        given = written = image_digest(picture)
        if data is not None and len(data) <= room:
            pixels -= height * width
            room -= len(data)
        elif max(height, width) > size:
            scaled = transforms.scaled_to_fit(picture, size)
            data, written = _png(scaled), image_digest(scaled)
            words.append(
                f"{_input(written)} was given with {width} x {height} pixels. Together the "
                f"pictures are too large for one file, so it is here as the models saw it, scaled "
                f"to fit {size} x {size} pixels: the same chunk comes of it."
            )
        files[written] = data or _png(picture)
        names[given] = written
    return files, names, words


def _renamed(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """With other digests of pictures."""
    policies = (
        dataclasses.replace(
            ran, image_sha256={slot: names.get(d, d) for slot, d in ran.image_sha256.items()}
        )
        for ran in recipe.policies
    )
    return dataclasses.replace(recipe, policies=tuple(policies))


def _png(picture: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", compress_level=3)
    return data.getvalue()


def _saved_trace(trace: Trace) -> bytes | None:
    """None where `read` would not take it."""
    data = io.BytesIO()
    traces.save(trace, data)
    try:
        _checked(trace)
        with zipfile.ZipFile(data) as archive:
            codec.checked_tree(archive, traces.MEMBER)
    except ValueError:
        return None
    return data.getvalue()


_SLACK = 64 << 10  # of names, and what stands at a ZIP's end


def _add(archive: zipfile.ZipFile, name: str, data: bytes | None, how: int) -> list[str]:
    """Writes a file into the ZIP where there is room for it; else a sentence says that there was
    none."""
    if data is not None:
        assert archive.fp is not None, "the ZIP is being written"
        room = MAX_FILE - archive.fp.tell() - _SLACK
        packed = how == zipfile.ZIP_DEFLATED and len(data) > room
        if (len(zlib.compress(data)) if packed else len(data)) <= room:
            archive.writestr(name, data, how)
            return []
    return [f"{name} is left out: with it, the file would be too large to be opened again."]


def filename(policy: str, badge: str) -> str:
    """Without a suffix; the badge is part of it, wherever the file may end up."""
    plain = f"{policy}-{badge}".replace(" ", "-")
    return "".join(letter for letter in plain if letter.isalnum() or letter in "-_.")


def _input(digest: str) -> str:
    return f"inputs/{digest}.png"


def _digest(values) -> str:
    if values is None:
        return ""
    values = np.ascontiguousarray(values)
    return hashlib.sha256(f"{values.dtype}{values.shape}".encode() + values.tobytes()).hexdigest()


# --- in -----------------------------------------------------------------------------------------


def read(data: bytes) -> Opened:
    """A recipe's JSON, a ZIP that `write` wrote, or a picture that the page saved. Raises
    ValueError that says what is wrong with anything else."""
    if len(data) > MAX_FILE:
        raise ValueError(f"the file has {len(data) >> 20} MB; at most {MAX_FILE >> 20} are taken")
    if data.startswith(b"PK"):
        return _read_zip(data)
    if data.startswith(_PNG):
        return Opened(from_json(_png_text(data)), {}, {})
    if data.lstrip()[:1] == b"{":
        return Opened(from_json(data), {}, {})
    raise ValueError("this is no recipe: open a JSON, ZIP or PNG file that the playground saved")


def from_json(text: str | bytes) -> Recipe:
    """Raises ValueError for whatever `to_json` could not have written."""
    if len(text) > _MAX_RECIPE:
        raise ValueError(f"the recipe has {len(text):,} bytes; at most {_MAX_RECIPE:,} are taken")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {error}") from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f"this JSON is no recipe: it lacks 'format': {FORMAT!r}")
    if tree.get("version") not in (3, VERSION):
        raise ValueError(
            f"the recipe is of version {tree.get('version')!r}; this playground reads {VERSION}"
        )
    fields = {name: value for name, value in tree.items() if name not in ("format", "version")}
    try:
        if tree["version"] == 3:
            fields = _of_version_3(fields)
        policies = tuple(map(_ran, _listed(fields.pop("policies"))))
        options = _options(fields.pop("options"))
        state = tuple(map(_number, _listed(fields.pop("state"))))
        shared = {"policies": policies, "options": options, "state": state}
        recipe = _typed(Recipe, {**fields, **shared}, known=shared)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the recipe is not whole, or not one of the playground's: {error}") from (
            error
        )
    if not policies or len({ran.name for ran in policies}) < len(policies):
        raise ValueError("the recipe names no policy, or one of them twice")
    if unknown := {m for ran in policies for m in ran.modes.values()} - set(get_args(SlotMode)):
        raise ValueError(f"the recipe has slots that are {sorted(unknown)!r:.60}")
    return recipe


# Options that recipes of earlier versions of the playground lack: the model as it is.
_LATER = {"guidance": 1.0, "cuts": []}


def _of_version_3(fields: dict) -> dict:
    """Where one device stood for all policies, among the versions."""
    versions, policies = _texts(fields["versions"]), _listed(fields["policies"])
    if not all(isinstance(ran, dict) for ran in policies):
        raise TypeError(f"the policies are {policies!r:.60}")
    device = versions.pop("device", "")
    policies = [
        {name: value for name, value in ran.items() if name != "dtype"}
        | {"computation": {"device": device, "dtype": ran["dtype"], "precision": "", "loop": ""}}
        for ran in policies
    ]
    return {**fields, "versions": versions, "policies": policies}


def _ran(tree) -> Ran:
    if not isinstance(tree, dict):
        raise TypeError(f"Ran is {tree!r:.60}")
    if "computation" in tree:
        tree = {**tree, "computation": _typed(Computation, tree["computation"])}
    return _typed(Ran, tree, known=("computation",))


def _options(tree) -> Options:
    if not isinstance(tree, dict):
        raise TypeError(f"Options is {tree!r}")
    tree = {**_LATER, **tree}
    if "guided" in tree:  # its name in earlier versions
        tree["constrained"] = tree.pop("guided")
    cuts = {"cuts": tuple(map(_cut, _listed(tree["cuts"])))}
    return _typed(Options, {**tree, **cuts}, known=cuts)


def _cut(tree) -> Cut:
    if not isinstance(tree, dict) or not tree.keys() >= {"layers"}:
        raise KeyError(f"a cut has a query, a key and layers, got {tree!r:.60}")
    layers = tree["layers"]
    layers = None if layers is None else tuple(map(_whole, _listed(layers)))
    return _typed(Cut, {**tree, "layers": layers}, known=("layers",))


def _typed(cls, tree, known=()):
    """An instance of a dataclass from JSON, each value of its field's type and of sane size."""
    if not isinstance(tree, dict):
        raise TypeError(f"{cls.__name__} is {tree!r}")
    read_as = {
        str: _text,
        int: _whole,
        float: _number,
        bool: _flag,
        bool | None: _choice,
        dict[str, str]: _texts,
        dict[str, SlotMode]: _texts,  # which modes there are is checked with the policies
    }
    names = {field.name: field.type for field in dataclasses.fields(cls)}
    if wrong := names.keys() ^ tree.keys():
        raise KeyError(f"{cls.__name__} lacks, or does not have, {', '.join(sorted(wrong))}")
    return cls(**{n: tree[n] if n in known else read_as[names[n]](tree[n]) for n in names})


def _text(value) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise TypeError(f"expected a text of at most {_MAX_TEXT} letters, got {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TypeError(f"{value!r:.60} holds half of a character") from error
    return value


def _whole(value) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, got {value!r:.60}")
    return value


def _number(value) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(f"expected a number, got {value!r:.60}")
    return float(value)


def _flag(value) -> bool:
    if type(value) is not bool:
        raise TypeError(f"expected true or false, got {value!r:.60}")
    return value


def _choice(value) -> bool | None:
    return None if value is None else _flag(value)


def _texts(value) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > 100:
        raise TypeError(f"expected texts by name, got {value!r:.60}")
    return {_text(name): _text(text) for name, text in value.items()}


def _listed(value) -> list:
    if not isinstance(value, list) or len(value) > 1000:
        raise TypeError(f"expected a list, got {value!r:.60}")
    return value


def _read_zip(data: bytes) -> Opened:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            codec.check_members(archive, _MAX_MEMBERS, codec.MAX_UNPACKED)
            if archive.getinfo("recipe.json").file_size > _MAX_RECIPE:
                raise ValueError("its recipe.json is far too large")
            recipe = from_json(archive.read("recipe.json"))
            names = set(archive.namelist())
            digests = {d for ran in recipe.policies for d in ran.image_sha256.values()}
            pictures = _pictures(
                {d: archive.read(_input(d)) for d in sorted(digests) if _input(d) in names}
            )
            outcomes = {}
            for ran in recipe.policies:
                name = f"traces/{filename(ran.name, ran.badge)}.npz"
                if name in names:
                    outcomes[ran.name] = _outcome(archive.read(name))
    except codec.UNREADABLE as error:
        raise ValueError(f"this ZIP is no saved run: {error}") from error
    for digest, picture in pictures.items():
        if image_digest(picture) != digest:
            raise ValueError("this ZIP is no saved run: a picture is not the one in its recipe")
    for ran in recipe.policies:
        if ran.name in outcomes:
            chunk, tokens = outcomes[ran.name]
            if (_digest(chunk), _digest(tokens or None)) != (ran.chunk, ran.tokens):
                raise ValueError(
                    f"this ZIP is no saved run: {ran.name}'s numbers are not those of its recipe"
                )
    return Opened(recipe, pictures, outcomes)


def _pictures(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    if len(files) > MAX_PICTURES:
        raise ValueError(f"it holds {len(files)} pictures; at most {MAX_PICTURES} are taken")
    # By their headers, before a pixel of any is decoded.
    pixels = sum(math.prod(transforms.image_size(file)) for file in files.values())
    if pixels > MAX_PIXELS:
        raise ValueError(f"its pictures have {pixels:,} pixels; at most {MAX_PIXELS:,} are taken")
    return {digest: transforms.load_image(file) for digest, file in files.items()}


def _outcome(data: bytes) -> tuple[np.ndarray | None, tuple[int, ...]]:
    return _checked(traces.load(io.BytesIO(data)))


def _checked(trace: Trace) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """What came of a run; raises ValueError where that is no such thing, or too large."""
    chunk = trace.actions_normalised
    if chunk is not None and not (isinstance(chunk, np.ndarray) and chunk.dtype == np.float32):
        raise ValueError("its actions are no float32 array")
    if chunk is not None and chunk.size > MAX_NUMBERS:
        raise ValueError(
            f"its actions are {chunk.size:,} numbers; at most {MAX_NUMBERS:,} are taken"
        )
    if isinstance(trace, FastTrace):
        tokens = trace.tokens
        if not isinstance(tokens, tuple) or not all(isinstance(t, DecodedToken) for t in tokens):
            raise ValueError("its tokens are no tokens")
        if len(tokens) > MAX_TOKENS:
            raise ValueError(f"its tokens are {len(tokens):,}; at most {MAX_TOKENS:,} are taken")
    return chunk, tuple(map(_whole, token_ids(trace)))


_PNG = b"\x89PNG\r\n\x1a\n"


def _png_text(data: bytes) -> bytes:
    """What an uncompressed iTXt chunk named FORMAT holds."""
    at, wanted = len(_PNG), FORMAT.encode() + b"\0"
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if kind == b"iTXt" and body.startswith(wanted):
            if zlib.crc32(kind + body) != int.from_bytes(data[at + 8 + size : at + 12 + size]):
                raise ValueError("the recipe in this picture is damaged")
            compressed, _, rest = body[len(wanted)], body[len(wanted) + 1], body[len(wanted) + 2 :]
            parts = rest.split(b"\0", 2)
            if compressed or len(parts) < 3:
                raise ValueError("the recipe in this picture is not written as the page does")
            return parts[2]
        at += 12 + size
    raise ValueError("this picture carries no recipe: open one that the playground saved")


# --- again --------------------------------------------------------------------------------------


def observation(opened: Opened, ran: Ran) -> RawObservation:
    """What a policy was given; raises ValueError if a picture is not in the file."""
    recipe = opened.recipe
    missing = [slot for slot, d in ran.image_sha256.items() if d not in opened.pictures]
    if missing:
        raise ValueError(f"the picture of {', '.join(missing)} is not in this file: open the ZIP")
    images = {slot: opened.pictures[digest] for slot, digest in ran.image_sha256.items()}
    return RawObservation(
        recipe.robot, images, dict(ran.modes), recipe.prompt, np.array(recipe.state)
    )


def verdicts(opened: Opened, again: Mapping[str, Trace]) -> list[Verdict]:
    """Whether each policy of the recipe gave the same again."""
    return [_verdict(opened, ran, again.get(ran.name)) for ran in opened.recipe.policies]


def _verdict(opened: Opened, ran: Ran, trace: Trace | None) -> Verdict:
    def verdict(how, text):
        return Verdict(ran.name, how, f"{ran.name} ({ran.badge}) {text}")

    if trace is None:
        return verdict("no", "did not run here.")
    if trace.info.revision != ran.revision:
        return verdict(
            "no",
            f"has other weights here: revision {trace.info.revision}, recorded {ran.revision}.",
        )
    tokens = token_ids(trace)
    chunk = trace.actions_normalised
    if (_digest(chunk), _digest(tokens or None)) == (ran.chunk, ran.tokens):
        return verdict("bits", "repeated bit for bit.")
    if _digest(tokens or None) != ran.tokens:
        return verdict("no", f"wrote other tokens than recorded{_because(opened, ran, trace)}.")
    if ran.name not in opened.outcomes:
        return verdict(
            "no",
            f"is not the recorded chunk bit for bit{_because(opened, ran, trace)}; how far off it "
            "is, the ZIP can tell.",
        )
    before = opened.outcomes[ran.name][0]
    if before is None or chunk is None or before.shape != chunk.shape:
        return verdict("no", "gave a chunk of another shape.")
    off, allowed = float(np.abs(chunk - before).max()), TOLERANCE.get(ran.computation.dtype, 0.0)
    if off <= allowed:
        return verdict(
            "tolerance",
            f"repeated within {off:.1g} of the recorded chunk, normalised ({allowed:g} is allowed)"
            f"{_because(opened, ran, trace)}.",
        )
    return verdict(
        "no",
        f"is up to {off:.2g} off the recorded chunk, normalised; {allowed:g} is allowed"
        f"{_because(opened, ran, trace)}.",
    )


def _because(opened: Opened, ran: Ran, trace: Trace) -> str:
    """What is different here."""
    before = opened.recipe.versions | dataclasses.asdict(ran.computation)
    here = trace.versions | dataclasses.asdict(trace.info.computation)
    other = [
        f"{name} {here.get(name, 'unknown')} for {before.get(name, 'unknown')}"
        for name in sorted(before.keys() | here.keys())
        if before.get(name) not in (here.get(name), "")
    ]
    return f" (here {', '.join(other)})" if other else ""
