"""What a run is asked for: one model for the page's form and for every endpoint, and the jobs that
it makes."""

import base64
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from gradio_client.utils import is_file_obj_with_meta
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from playground.analysis.causal import CausalRequest, ConnectionsRequest
from playground.analysis.sensitivity import NOISES, SensitivityRequest
from playground.analysis.variants import GROUPS, checked_groups
from playground.robots import transforms
from playground.robots.robot import check_state, slot_mode, slot_modes
from playground.serving.events import Job
from playground.trace import Cut, Options, RawObservation
from playground.ui import decoding
from playground.ui.setup import Setup, Setups, numbers

AS_TRAINED = "as trained"
MAX_PICTURE = 20 << 20  # bytes of a file; a telephone's photo has about ten
MAX_PROMPT = 10_000  # characters
MAX_PROMPTS_TEXT = 4 * MAX_PROMPT  # of several prompts, one a line

_DATA_URL = re.compile("data:image/(png|jpeg|webp);base64,")  # RFC 2397
_TEXTS = "a list of texts, or null"
_WHOLE = "a whole number, such as 10"


def _number(value: object) -> int | float:
    """Neither text nor truth is a number, whatever pydantic makes of them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    return value


def _whole(value: object) -> int | float:
    """To JavaScript, 10 and 10.0 are the same number, and above 2**53 it knows no whole ones."""
    number = _number(value)
    return int(number) if number % 1 == 0 and abs(number) < 2**53 else number


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]


class CutRequest(BaseModel):
    """A connection that a run goes without, see `playground.trace.Cut`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str
    key: str
    layers: list[Whole] | None = None

    @classmethod
    def checked(cls, given: Mapping[str, object]) -> Cut:
        """The cut that a program describes. Raises ValueError."""
        try:
            one = cls.model_validate(dict(given))
        except ValidationError as error:
            raise ValueError(
                f"a cut is an object with query and key, texts, and layers, a list of whole "
                f"numbers or null; {given!r:.80} came"
            ) from error
        return Cut(one.query, one.key, None if one.layers is None else tuple(one.layers))


class RunRequest(BaseModel):
    """One observation, the policies to run on it, and how. Fields are described as an error says
    what it expected; what each means is in the endpoints' own words."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(description="text")
    images: dict[str, Any] = Field(description="an object with a file by camera slot")
    # Which number is none is said with its name in the robot's state.
    state: list[Any] | None = Field(None, description="a list of numbers, or null")
    policies: list[str] | None = Field(None, description=_TEXTS)
    robot: str | None = Field(None, description="text or null")
    modes: dict[str, str] | None = Field(
        None, description='an object with "masked" or "black" by camera slot, or null'
    )
    num_steps: Whole = Field(10, description=_WHOLE)
    num_samples: Whole = Field(1, description=_WHOLE)
    seed: Whole = Field(0, description=_WHOLE)
    temperature: Number = Field(0.0, description="a number, such as 0.5")
    max_tokens: Whole = Field(256, description=_WHOLE)
    constrained: bool | None = Field(None, description="true, false or null")
    guidance: Number = Field(1.0, description="a number from 0 to 3, such as 1.5")
    # Of single endpoints.
    which: Literal["suffix", "prefix"] = Field("suffix", description='"suffix" or "prefix"')
    noises: Whole = Field(NOISES, description=_WHOLE)
    groups: list[str] | None = Field(None, description=_TEXTS)
    prompts: list[str] | None = Field(None, description=_TEXTS)
    counterfactual: str = Field("", description="text: the prompt to compare with")
    patches: bool = Field(True, description="true or false")
    cuts: list[dict[str, Any]] = Field(
        [],
        description='a list of connections, such as {"query": "actions", "key": "text", '
        '"layers": [1, 2]}, where layers may be null',
    )

    @classmethod
    def checked(cls, values: Mapping[str, object]) -> "RunRequest":
        """The request of these values. Raises ValueError that says of every wrong field what was
        expected and what came."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ValueError(_problems(cls, values, error)) from error

    def options(self, *, attention: bool = False) -> Options:
        return Options(
            num_steps=self.num_steps,
            num_samples=self.num_samples,
            seed=self.seed,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            attention=attention,
            constrained=self.constrained,
            guidance=self.guidance,
            cuts=tuple(map(CutRequest.checked, self.cuts)),
        )

    def jobs(self, setups: Setups, *, attention: bool = False) -> list[Job]:
        """What to put in line. Raises ValueError that says what to mend."""
        setup = setups.of(self.robot)
        pictures, modes = self._slots(setup)
        return jobs(
            setup,
            policies=setup.policies if self.policies is None else self.policies,
            pictures=pictures,
            modes=modes,
            prompt=self.prompt,
            state=setup.robot.resting_state if self.state is None else self.state,
            options=self.options(attention=attention),
        )

    def measurement(self, setups: Setups) -> SensitivityRequest:
        """What to measure for "what_matters"; raises as `jobs` does."""
        groups = GROUPS if self.groups is None else checked_groups(self.groups)
        if not groups:
            raise ValueError("choose something to vary: the prompt, the cameras or the state")
        alternatives = tuple(filter(None, (text.strip() for text in self.prompts or ())))
        if sum(map(len, alternatives)) > MAX_PROMPTS_TEXT:
            raise ValueError(
                f"prompts hold more than {MAX_PROMPTS_TEXT:,} characters: shorten them"
            )
        observations, options = self._observed(setups)
        return SensitivityRequest(
            policies=tuple(observations),
            observations=observations,
            options=options,
            noises=self.noises,
            groups=groups,
            alternatives=alternatives,
        )

    def tracing(self, setups: Setups) -> CausalRequest:
        """What to trace for "causal_trace"; raises as `jobs` does."""
        if not self.counterfactual.strip():
            raise ValueError("give the prompt to compare with: counterfactual is empty")
        if len(self.counterfactual) > MAX_PROMPT:
            raise ValueError(f"counterfactual is longer than {MAX_PROMPT:,} characters: shorten it")
        observations, options = self._observed(setups)
        return CausalRequest(
            policies=tuple(observations),
            observations=observations,
            options=options,
            counterfactual=self.counterfactual,
            noises=self.noises,
            patches=self.patches,
        )

    def connections(self, setups: Setups) -> ConnectionsRequest:
        """What to measure for "knockout" and "occlusion"; raises as `jobs` does."""
        observations, options = self._observed(setups)
        return ConnectionsRequest(tuple(observations), observations, options, self.noises)

    def _observed(self, setups: Setups) -> tuple[dict[str, RawObservation], Options]:
        found = self.jobs(setups)
        return {name: job.observation for job in found for name in job.policies}, found[0].options

    def _slots(self, setup: Setup) -> tuple[list[np.ndarray | None], list[str]]:
        """Pictures and modes in the order of the setup's cameras; any of a camera's names will
        do."""
        names = {slot.name: i for i, c in enumerate(setup.cameras) for slot in c.slots.values()}
        given = self.modes or {}
        if unknown := sorted((self.images.keys() | given.keys()) - set(names)):
            raise ValueError(f"no camera slots {unknown} here; there are {sorted(names)}")
        pictures: list[np.ndarray | None] = [None] * len(setup.cameras)
        modes = [AS_TRAINED] * len(setup.cameras)
        for name, file in self.images.items():
            try:
                pictures[names[name]] = decoding.picture(_picture_source(file))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        for name, mode in given.items():
            modes[names[name]] = mode
        return pictures, modes


def _problems(model: type[BaseModel], values: Mapping, error: ValidationError) -> str:
    found = {}
    for problem in error.errors():
        name = str(problem["loc"][0])
        field = model.model_fields.get(name)
        expected = "left out: no field is called so" if field is None else field.description
        found[name] = f"{name} must be {expected}; {values.get(name)!r:.60} came"
    return ". ".join(found.values())


def _picture_source(given: Any) -> decoding.Source:
    """Of an uploaded file, or of a text that holds one. Raises ValueError for anything else."""
    # Of whatever is an upload by this mark, Gradio has checked that its path is one too.
    if is_file_obj_with_meta(given):
        return functools.partial(_picture_file, given["path"])
    if isinstance(given, str) and (found := _DATA_URL.match(given)):
        try:
            return base64.b64decode(given[found.end() :], validate=True)
        except ValueError as error:
            raise ValueError(f"what follows {found.group()} is no base64 ({error})") from error
    raise ValueError(
        "give an uploaded picture (gradio_client.handle_file), or its file as a text "
        f'"data:image/png;base64,..." (PNG, JPEG or WebP); {given!r:.60} came'
    )


def picture(path: str | Path) -> np.ndarray:
    """A file that a visitor gave, as `transforms.load_image` reads it; raises ValueError."""
    return decoding.picture(functools.partial(_picture_file, path))


def sizes(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of such a file and of what `picture` makes of it; raises ValueError for what
    `picture` would not read."""
    picture(path)
    return decoding.read_size(functools.partial(_picture_file, path))


def _picture_file(path: str | Path) -> bytes:
    """Raises ValueError for a file that is too large, or gone."""
    try:
        if Path(path).stat().st_size > MAX_PICTURE:
            raise ValueError(
                f"the picture's file is larger than {MAX_PICTURE >> 20} MB: scale it down (the "
                "models see 224 x 224)"
            )
        return Path(path).read_bytes()
    except OSError as error:  # files are kept for some hours
        raise ValueError("the picture is no longer kept here: give it again") from error


# --- jobs ---------------------------------------------------------------------------------------


def jobs(
    setup: Setup,
    *,
    policies: Sequence[str],
    pictures: Sequence[np.ndarray | None],
    modes: Sequence[str],
    prompt: str | None,
    state: Sequence[float | str],
    options: Options,
) -> list[Job]:
    """One job for all policies that name the slots alike and are given the same prompt.

    pictures, modes: of `setup.cameras`, in order. prompt: where it says nothing, each policy gets
    its default prompt. state: in the robot's units, as typed. Raises ValueError that says what to
    mend.
    """
    _check_kinds(policies, prompt, state)
    if unknown := set(policies) - set(setup.policies):
        raise ValueError(f"no loaded policy is called {', '.join(sorted(unknown))}")
    if not policies:
        raise ValueError("choose at least one policy to run")
    names = [[slot.name for slot in setup.robot.slots(kind)] for kind in ("pi0", "pi0_fast")]
    says_something = bool((prompt or "").strip())
    if not setup.infos and (names[0] != names[1] or not says_something):
        raise ValueError("the policies are still being loaded; run when the page says so")
    values = check_state(setup.robot, numbers(setup.robot, state))
    found: dict[tuple, Job] = {}
    for policy in policies:
        default = setup.infos[policy].default_prompt if policy in setup.infos else None
        slots = [camera.slots[policy].name if policy in camera.slots else None
                 for camera in setup.cameras]  # fmt: skip
        given = [
            (slot, picture, mode)
            for slot, picture, mode in zip(slots, pictures, modes, strict=True)
            if slot is not None
        ]
        observation = RawObservation(
            robot=setup.robot.name,
            images={
                slot: picture
                for slot, picture, mode in given
                if picture is not None and mode in (AS_TRAINED, "filled")
            },
            modes={slot: slot_mode(slot, mode) for slot, _, mode in given if mode != AS_TRAINED},
            prompt=(prompt or "") if says_something else default or prompt or "",
            state=values,
        )
        _check_pictures(setup, policy, observation)
        key = (observation.prompt, *(slot for slot, _, _ in given))
        before = found[key].policies if key in found else ()
        found[key] = Job((*before, policy), observation, options)
    return list(found.values())


def _check_kinds(policies: object, prompt: object, state: object) -> None:
    """Whoever speaks to the server without the page may send anything."""
    if not isinstance(policies, list | tuple):
        raise ValueError(f"the policies must be a list, {policies!r:.60} came")
    if not isinstance(state, list | tuple):
        raise ValueError(f"the state must be a list, {state!r:.60} came")
    if not isinstance(prompt, str | None) or not all(isinstance(name, str) for name in policies):
        raise ValueError("the prompt and each name of a policy must be text")
    if prompt and len(prompt) > MAX_PROMPT:
        raise ValueError(
            f"the prompt has {len(prompt):,} characters, at most {MAX_PROMPT:,} are taken: shorten "
            "it (the models read a sentence or two)"
        )


def _check_pictures(setup: Setup, policy: str, observation: RawObservation) -> None:
    """Before the queue: the policy itself would say the same after it."""
    slots = [camera.slots[policy] for camera in setup.cameras if policy in camera.slots]
    slot_modes(tuple(slots), observation)
    if policy in setup.infos:
        size = setup.infos[policy].image_size
        for slot, given in observation.images.items():
            try:
                height, width = given.shape[:2]
                transforms.fitted_size(height, width, size, size)
            except ValueError as error:
                raise ValueError(f"{slot}: {error}") from error
