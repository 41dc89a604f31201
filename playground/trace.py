"""The contract between model and page: what goes in (RawObservation, Options) and what one run of
one policy produced (Trace). Whatever the page shows is in a trace; a trace is saved as npz + JSON.

Time runs as in openpi: t = 1 is noise, t = 0 the action (the paper's tau is 1 - t).
"""

import dataclasses
import hashlib
import io
import json
import math
import struct
import zipfile
import zlib
from typing import Literal

import numpy as np

Family = Literal["pi0", "pi05", "pi0_fast"]
SlotMode = Literal["filled", "masked", "black"]
Meaning = Literal["absolute", "offset", "velocity"]

# Cell codes of a mask matrix.
BLOCKED, ALLOWED, PADDING = 0, 1, 2

MAX_UNPACKED = 1 << 29  # bytes that a saved trace may unpack to


@dataclasses.dataclass(frozen=True, slots=True)
class Dimension:
    """One real dimension of a robot's state or action.

    `meaning` says what a predicted value is in the robot's units: an absolute target, an offset
    (from the state at the start of the chunk, not from the step before) or a velocity.
    """

    name: str
    unit: str
    meaning: Meaning = "absolute"


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """A camera input of the model. `when_missing` is what the policy was trained with."""

    name: str
    camera: str
    required: bool
    when_missing: Literal["masked", "black"]


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """Norm stats over the real dimensions of state or actions, in the robot's units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...] | None
    q99: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What the page knows of a policy without touching its weights.

    badge: shown wherever the policy's output shows ("untrained weights", "small bundled policy",
    "real checkpoint"). revision: digest of the weights. default_prompt: what it is told when
    nothing is said. stats_notes: plain sentences on norm stats that do not fit the robot. guided:
    whether pi0-FAST decodes so unless told otherwise, see Options.
    """

    name: str
    title: str
    family: Family
    badge: str
    notice: str
    revision: str
    robot: str
    slots: tuple[Slot, ...]
    image_size: int
    state: tuple[Dimension, ...]
    actions: tuple[Dimension, ...]
    control_hz: float
    horizon: int
    max_token_len: int
    normalisation: Literal["z-score", "quantile"]
    state_stats: Stats | None
    action_stats: Stats | None
    model_config: dict
    default_prompt: str | None = None
    stats_notes: tuple[str, ...] = ()
    guided: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class RawObservation:
    """What a person gives, in the robot's terms.

    images: by slot, uint8 [height, width, 3], any size; only slots whose mode is "filled".
    modes: by slot; "masked" hides the slot from attention, "black" is a black image that is
    attended to. A slot without a mode is "filled" if it has an image, else what the policy's slot
    says under `when_missing`. state: float [state dimensions], in the robot's units.
    """

    robot: str
    images: dict[str, np.ndarray]
    modes: dict[str, SlotMode]
    prompt: str
    state: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How to run. num_steps, num_samples and seed are pi0's; temperature and max_tokens FAST's
    (seed counts there only when temperature > 0). Sample i of pi0 uses noise from seed + i.
    guided: pi0-FAST chooses among the tokens that keep the chunk decodable, instead of among all as
    openpi does; None: as the policy is meant to (PolicyInfo.guided)."""

    num_steps: int = 10
    num_samples: int = 1
    seed: int = 0
    temperature: float = 0.0
    max_tokens: int = 256
    attention: bool = False
    guided: bool | None = None


def is_guided(info: PolicyInfo, options: Options) -> bool:
    """Whether a policy decodes guided under these options."""
    return info.guided if options.guided is None else options.guided


@dataclasses.dataclass(frozen=True, slots=True)
class TokenBlock:
    """A run of columns [start, stop) of a mask. name: a slot's name, "text", "state", "actions",
    "generated" or "padding"; kind is the same without telling slots apart ("image")."""

    name: str
    kind: Literal["image", "text", "state", "actions", "generated", "padding"]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, slots=True)
class DecodedToken:
    """One token that pi0-FAST produced. runners_up: the likeliest others, best first."""

    id: int
    text: str
    probability: float
    runners_up: tuple[tuple[int, str, float], ...]

    @property
    def likeliest(self) -> bool:
        """False where it was drawn, or guided decoding passed over likelier ones."""
        return all(p <= self.probability for _, _, p in self.runners_up)


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """All that repeats a run: policy and revision, inputs with hashes, options, versions."""

    policy: str
    revision: str
    robot: str
    prompt: str
    state: tuple[float, ...]
    modes: dict[str, str]
    image_sha256: dict[str, str]
    options: Options
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """One run of one policy. N samples, H horizon, D real action dimensions, M the model's action
    dimensions, S Euler steps, C mask columns, T generated tokens.

    info, recipe           what ran and how to repeat it
    images                 by slot, uint8 [size, size, 3]: what the model saw, after padding
    text                   the exact text the model received (the prefix for FAST)
    token_texts            C strings, one a mask column; "" for image patches
    prompt_tokens          (id, piece) of each valid prompt token
    truncated              number of prompt tokens cut off at max_token_len
    blocks                 the columns of the mask, in order; FAST's prefix is right-aligned, so its
                           padding comes first
    mask                   uint8 [R, C], codes BLOCKED, ALLOWED, PADDING; rows are queries in the
                           order of the columns; for FAST the rows of generated tokens follow the
                           decode loop. Where prefix and suffix ran apart, the suffix rows are the
                           last ones
    actions                float32 [N, H, D], robot units; None when FAST's tokens did not decode
    actions_normalised     float32 [N, H, D], as the model gave them
    times                  float32 [S + 1], from 1 to 0 (flow policies, else None)
    x_t                    float32 [S + 1, N, H, M] (flow policies)
    v_t                    float32 [S, N, H, M]
    estimates              float32 [S, N, H, D]: x_t - t v_t of each step, in robot units
    tokens                 every generated token (FAST, else empty)
    partial_actions        float32 [T, H, D], robot units: the chunk decoded from the first i + 1
                           tokens, missing coefficients as zeros; NaN where nothing decodes
    decode_failure         why FAST's tokens did not decode, or None
    attention              by name, measured weights when asked for (see models/), else empty
    timings_ms             by stage: preprocess, vision, prefix, denoise or decode, postprocess; a
                           first call of its kind stands apart as "compiling <stage>"
    reused                 stages answered from a cache
    warnings               plain sentences (state outside q01..q99, prompt cut off, ...)
    """

    info: PolicyInfo
    recipe: Recipe
    images: dict[str, np.ndarray]
    text: str
    token_texts: tuple[str, ...]
    prompt_tokens: tuple[tuple[int, str], ...]
    truncated: int
    blocks: tuple[TokenBlock, ...]
    mask: np.ndarray
    actions: np.ndarray | None
    actions_normalised: np.ndarray | None
    times: np.ndarray | None = None
    x_t: np.ndarray | None = None
    v_t: np.ndarray | None = None
    estimates: np.ndarray | None = None
    tokens: tuple[DecodedToken, ...] = ()
    partial_actions: np.ndarray | None = None
    decode_failure: str | None = None
    attention: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    timings_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    reused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


# --- plain values -------------------------------------------------------------------------------

_CLASSES = {
    cls.__name__: cls
    for cls in (
        Dimension,
        Slot,
        Stats,
        PolicyInfo,
        RawObservation,
        Options,
        TokenBlock,
        DecodedToken,
        Recipe,
        Trace,
    )
}


def pack(value) -> tuple[object, dict[str, np.ndarray]]:
    """A value made of this module's classes, dicts, tuples, arrays and scalars, as (JSON tree,
    arrays by key). No pickle: this is what files and the worker's wire carry."""
    arrays: dict[str, np.ndarray] = {}

    def encode(value):
        if isinstance(value, np.ndarray):
            key = f"a{len(arrays)}"
            arrays[key] = value
            return {"$array": key}
        if isinstance(value, np.generic):
            return value.item()
        if dataclasses.is_dataclass(value):
            fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"$class": type(value).__name__, **fields}
        if isinstance(value, dict):
            return {"$dict": [[encode(k), encode(v)] for k, v in value.items()]}
        if isinstance(value, tuple):
            return {"$tuple": [encode(item) for item in value]}
        if isinstance(value, list):
            return [encode(item) for item in value]
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        raise TypeError(f"cannot pack a {type(value).__name__}")

    return encode(value), arrays


def unpack(tree, arrays):
    """The value that `pack` took apart; raises ValueError on anything it did not write."""
    if isinstance(tree, list):
        return [unpack(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    try:
        if "$array" in tree:
            return arrays[tree["$array"]]
        if "$tuple" in tree:
            return tuple(unpack(item, arrays) for item in tree["$tuple"])
        if "$dict" in tree:
            return {unpack(k, arrays): unpack(v, arrays) for k, v in tree["$dict"]}
        fields = {k: unpack(v, arrays) for k, v in tree.items() if k != "$class"}
        return _CLASSES[tree["$class"]](**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a value written by this program: {error}") from error


def save(trace: Trace, file) -> None:
    """Writes a trace to a path or binary file: a ZIP (npz) of arrays with `trace.json` inside."""
    tree, arrays = pack(trace)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("trace.json", json.dumps(tree))
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(f"{key}.npy", buffer.getvalue())


def load(file) -> Trace:
    """The trace that `save` wrote; raises ValueError if the file is anything else.

    A file from a stranger does no harm: nothing is unpickled, and what it claims to hold is held
    against MAX_UNPACKED before memory is asked for.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            # No more than the size that a member declares is ever read from it.
            if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED:
                raise ValueError(f"it unpacks to more than {MAX_UNPACKED >> 20} MB")
            tree = json.loads(archive.read("trace.json"))
            arrays = {
                name.removesuffix(".npy"): _array(archive.read(name))
                for name in archive.namelist()
                if name.endswith(".npy")
            }
        trace = unpack(tree, arrays)
    except UNREADABLE as error:
        raise ValueError(f"not a saved trace: {error}") from error
    if not isinstance(trace, Trace):
        raise ValueError(f"expected a saved trace, found {type(trace).__name__}")
    return trace


# What zipfile raises on files that are none: bad structure, checksums, streams, methods, passwords.
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError),
    *(OSError, ValueError, TypeError, struct.error, RecursionError),
)


def _array(data: bytes) -> np.ndarray:
    """Of a .npy, whose header must agree with what follows it."""
    source = io.BytesIO(data)
    version = np.lib.format.read_magic(source)
    if version != (1, 0):
        raise ValueError(f"an array is of version {version}, which is not written here")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(source)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - source.tell():
        raise ValueError(f"an array claims to be {dtype} {list(shape)} and is something else")
    order = "F" if fortran else "C"
    return np.frombuffer(data, dtype, offset=source.tell()).reshape(shape, order=order).copy()


def image_digest(image: np.ndarray) -> str:
    """sha256 of an image's shape and bytes."""
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
