"""The contract between model and page: what goes in (RawObservation, Options) and what one run of
one policy produced (Trace). Whatever the page shows is in a trace; a trace is saved as npz + JSON.

Time runs as in openpi: t = 1 is noise, t = 0 the action (the paper's tau is 1 - t).
"""

import dataclasses
import hashlib
from typing import ClassVar, Literal

import numpy as np

from playground import codec

Family = Literal["pi0", "pi05", "pi0_fast"]
SlotMode = Literal["filled", "masked", "black"]
Meaning = Literal["absolute", "offset", "velocity"]
Method = Literal["z-score", "quantile", "quantile-10", "min-max", "identity"]

# Cell codes of a mask matrix.
BLOCKED, ALLOWED, PADDING = 0, 1, 2


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Dimension:
    """One real dimension of a robot's state or action.

    `meaning` says what a predicted value is in the robot's units: an absolute target, an offset
    (from the state at the start of the chunk, not from the step before) or a velocity.
    """

    name: str
    unit: str
    meaning: Meaning = "absolute"


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """A camera input of the model. `when_missing` is what the policy was trained with."""

    name: str
    camera: str
    required: bool
    when_missing: Literal["masked", "black"]


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """Norm stats over the real dimensions of state or actions, in the robot's units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...] | None
    q99: tuple[float, ...] | None


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Computation:
    """What a policy computes with; "" where an old file does not tell.

    device: as JAX names it, "cpu" for the host's processor
    dtype: of its arithmetic
    precision: of its matrix products, as JAX names it; "highest" of float32 is float32 itself
    loop: "one program" where many Euler steps or tokens run at once, else "step by step"
    """

    device: str = ""
    dtype: str = ""
    precision: str = ""
    loop: str = ""


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What the page knows of a policy without touching its weights.

    badge: shown wherever the policy's output shows ("untrained weights", "small bundled policy",
    "real checkpoint"). revision: digest of the weights. default_prompt: what it gets when nobody
    gives a prompt. stats_notes: plain sentences on norm stats that do not fit the robot.
    constrained: whether pi0-FAST decodes so unless asked otherwise, see Options. normalisation: how
    state and actions were scaled; action_normalisation: the actions, where it was another way.
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
    normalisation: Method
    state_stats: Stats | None
    action_stats: Stats | None
    model_config: dict
    default_prompt: str | None = None
    stats_notes: tuple[str, ...] = ()
    constrained: bool = False
    action_normalisation: Method | None = None
    computation: Computation = Computation()

    def stats(self, part: Literal["state", "actions"]) -> Stats:
        """That part's norm stats. Raises ValueError for a policy that has none."""
        found = self.state_stats if part == "state" else self.action_stats
        if found is None:
            raise ValueError(f"{self.title} has no norm stats of its {part}")
        return found

    def method(self, part: Literal["state", "actions"]) -> Method:
        """How that part was scaled."""
        if part == "actions" and self.action_normalisation is not None:
            return self.action_normalisation
        return self.normalisation


@codec.register
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


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """A connection that a run goes without (attention knockout): queries of one block do not attend
    to keys of another.

    query, key: a camera slot's name, "images" for all of them, "text", "state" or "actions" (of
        pi0-FAST: the written tokens)
    layers: which, from 1 on; None: all
    """

    query: str
    key: str
    layers: tuple[int, ...] | None = None


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How to run. num_steps, num_samples and seed are pi0's; temperature and max_tokens FAST's
    (seed counts there only when temperature > 0). Sample i of pi0 uses noise from seed + i.
    constrained: pi0-FAST chooses among the tokens that keep the chunk decodable, instead of among
    all as openpi does; None: as the policy is meant to (PolicyInfo.constrained).
    guidance: pi0's, w in v_empty + w (v - v_empty), where v_empty is the velocity with an empty
    prompt; 1 is the policy itself. cuts: connections that the model goes without."""

    num_steps: int = 10
    num_samples: int = 1
    seed: int = 0
    temperature: float = 0.0
    max_tokens: int = 256
    attention: bool = False
    constrained: bool | None = None
    guidance: float = 1.0
    cuts: tuple[Cut, ...] = ()


def is_constrained(info: PolicyInfo, options: Options) -> bool:
    """Whether a policy's decoding is constrained under these options."""
    return info.constrained if options.constrained is None else options.constrained


# Of one observation. The page, its run files and programs take as many; a policy with more camera
# inputs is refused as it is opened.
MAX_PICTURES = 64


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class TokenBlock:
    """A run of columns [start, stop) of a mask. name: a slot's name, "text", "state", "actions",
    "generated" or "padding"; kind is the same without telling slots apart ("image")."""

    name: str
    kind: Literal["image", "text", "state", "actions", "generated", "padding"]
    start: int
    stop: int


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class DecodedToken:
    """One token that pi0-FAST produced. runners_up: the likeliest others, best first."""

    id: int
    text: str
    probability: float
    runners_up: tuple[tuple[int, str, float], ...]

    @property
    def likeliest(self) -> bool:
        """False where it was drawn, or constrained decoding passed over likelier ones."""
        return all(p <= self.probability for _, _, p in self.runners_up)


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """What a run was given. state: in the robot's units; modes: of every slot; image_sha256: of the
    slots with a picture (`image_digest`)."""

    prompt: str
    state: tuple[float, ...]
    modes: dict[str, SlotMode]
    image_sha256: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What every trace holds. N samples, H horizon, D real action dimensions, C mask columns.

    info, inputs, options  what ran, on what and how
    versions               of the packages and the machine that it ran on
    on_table               whether the pictures are of the simulated table, as its camera takes
                           them; None for a robot that is not the table's
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
    attention              by name, measured weights when asked for (see models/), else empty
    timings_ms             by stage: preprocess, vision, prefix, denoise or decode, postprocess; a
                           first call of its kind stands apart as "compiling <stage>"
    reused                 stages answered from a cache
    warnings               plain sentences (state outside q01..q99, prompt cut off, ...)
    """

    info: PolicyInfo
    inputs: Inputs
    options: Options
    versions: dict[str, str]
    on_table: bool | None = None
    images: dict[str, np.ndarray]
    text: str
    token_texts: tuple[str, ...]
    prompt_tokens: tuple[tuple[int, str], ...]
    truncated: int
    blocks: tuple[TokenBlock, ...]
    mask: np.ndarray
    attention: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    timings_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    reused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@codec.register
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FlowTrace(_Run):
    """A run of pi0 or pi0.5. S Euler steps, M the model's action dimensions.

    actions                float32 [N, H, D], robot units
    actions_normalised     float32 [N, H, D], as the model gave them
    times                  float32 [S + 1], from 1 to 0
    x_t                    float32 [S + 1, N, H, M]
    v_t                    float32 [S, N, H, M]
    estimates              float32 [S, N, H, D]: x_t - t v_t of each step, in robot units
    """

    actions: np.ndarray
    actions_normalised: np.ndarray
    times: np.ndarray
    x_t: np.ndarray
    v_t: np.ndarray
    estimates: np.ndarray
    decode_failure: ClassVar[None] = None  # nothing is decoded, so nothing can fail to be


@codec.register
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FastTrace(_Run):
    """A run of pi0-FAST. T generated tokens; N is 1.

    actions                float32 [1, H, D], robot units; None when the tokens did not decode
    actions_normalised     float32 [1, H, D], as the model gave them; None likewise
    decode_failure         why the tokens did not decode; None when they did
    tokens                 every generated token
    partial_actions        float32 [T, H, D], robot units: the chunk decoded from the first i + 1
                           tokens, missing coefficients as zeros; NaN where nothing decodes
    """

    actions: np.ndarray | None
    actions_normalised: np.ndarray | None
    decode_failure: str | None
    tokens: tuple[DecodedToken, ...]
    partial_actions: np.ndarray


Trace = FlowTrace | FastTrace


def token_ids(trace: Trace) -> tuple[int, ...]:
    """The tokens that a run generated; none for a flow policy."""
    return tuple(token.id for token in trace.tokens) if isinstance(trace, FastTrace) else ()


MEMBER = "trace.json"


def save(trace: Trace, file) -> None:
    """Writes a trace to a path or binary file: a ZIP (npz) of arrays with MEMBER inside."""
    codec.write_archive(trace, file, MEMBER)


def load(file) -> Trace:
    """The trace that `save` wrote; raises ValueError if the file is anything else, see
    `codec.read_archive`."""
    try:
        trace = codec.read_archive(file, MEMBER)
    except codec.UNREADABLE as error:
        raise ValueError(f"not a saved trace: {error}") from error
    if not isinstance(trace, Trace):
        raise ValueError(f"expected a saved trace, found {type(trace).__name__}")
    return trace


def image_digest(image: np.ndarray) -> str:
    """sha256 of an image's shape and bytes."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
