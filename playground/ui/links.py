"""A link that reopens what is shown: prompt, scene, policies, options and tab as plain query
parameters. A visitor's own pictures and state are not in it."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qs

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from playground import cuts
from playground.robots.builtin import TABLETOP
from playground.robots.examples import examples
from playground.tabletop import job
from playground.trace import Options
from playground.ui import observation, scenes
from playground.ui.observation import DECODING, Form
from playground.ui.request import AS_TRAINED, MAX_PROMPT
from playground.ui.setup import Setup, Setups
from playground.ui.visits import Restored

_MAX_QUERY = 4 * MAX_PROMPT  # characters
_DECODING = {label.split(",")[0]: way for label, way in DECODING.items()}


def _is_decoding(text: str) -> str:
    if text not in _DECODING:
        raise ValueError("no way of decoding")
    return text


def _are_cuts(text: str) -> str:
    for one in filter(None, text.split(";")):
        cuts.read(one)
    return text


class Link(BaseModel):
    """What a link says, each at most once; what it does not say is as on a fresh page. Fields are
    described as an error says what it expected."""

    prompt: str | None = Field(None, max_length=MAX_PROMPT, description="text")
    robot: str | None = Field(None, description="a robot's name")
    scene: int | None = Field(None, ge=0, lt=scenes.MOST, description="a scene's number")
    policies: str | None = Field(None, description="names, with commas between")
    steps: int = Field(10, ge=1, le=100, description="a whole number from 1 to 100")
    samples: int = Field(1, ge=1, le=32, description="a whole number from 1 to 32")
    seed: int = Field(0, ge=0, lt=2**31, description="a whole number from 0 on")
    temperature: float = Field(0, ge=0, le=2, description="a number from 0 to 2")
    tokens: int = Field(256, ge=8, le=512, description="a whole number from 8 to 512")
    decoding: Annotated[str, AfterValidator(_is_decoding)] = Field(
        next(iter(_DECODING)), description=", ".join(_DECODING)
    )
    weight: float = Field(1, ge=0, le=3, description="a number from 0 to 3")
    cuts: Annotated[str, AfterValidator(_are_cuts)] = Field(
        "", description="connections like actions>text:1,3 (queries, keys, layers), with ; between"
    )
    tab: str | None = Field(None, description="a tab's title")

    @property
    def options(self) -> Options:
        return Options(
            num_steps=self.steps,
            num_samples=self.samples,
            seed=self.seed,
            temperature=self.temperature,
            max_tokens=self.tokens,
            constrained=_DECODING[self.decoding],
            guidance=self.weight,
            cuts=tuple(map(cuts.read, filter(None, self.cuts.split(";")))),
        )


def read(query: str) -> Link | None:
    """The link in an address's query; None where it holds nothing of one. Raises ValueError that
    names every parameter that cannot be."""
    if len(query) > _MAX_QUERY:
        raise ValueError(f"the link is longer than {_MAX_QUERY:,} characters")
    found = parse_qs(query.removeprefix("?"), keep_blank_values=True)
    given = {name: values[-1] for name, values in found.items() if name in Link.model_fields}
    if not given:
        return None
    try:
        return Link.model_validate(given)
    except ValidationError as error:
        names = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors())
        raise ValueError(
            ". ".join(
                f"{name} must be {Link.model_fields[name].description}; {given[name]!r:.60} came"
                for name in names
            )
        ) from error


def opened(link: Link, setups: Setups, form: Form) -> Restored:
    """What sets the form as the link says. Raises ValueError for a robot or policies that are not
    here, and for a scene that cannot be drawn."""
    setup = setups.of(link.robot)
    chosen = _policies(link, setup)
    prompt, state, pictures = _observation(link, setup)
    modes = [AS_TRAINED] * len(setup.cameras)
    updates = observation.put(setup, form, prompt, state, chosen, link.options, pictures, modes) | {
        form.scenes.seed: link.scene
    }
    return Restored(updates, setup.robot.name, chosen, link.temperature)


def tab(link: Link, titles: Mapping[str, str]) -> str | None:
    """The id of the link's tab, None where it names none. titles: by id. Raises ValueError for a
    title that no tab has."""
    if link.tab is None:
        return None
    for name, title in titles.items():
        if link.tab.casefold() == title.casefold():
            return name
    raise ValueError(f"there is no tab {link.tab!r:.60}; there are {', '.join(titles.values())}")


def _policies(link: Link, setup: Setup) -> list[str]:
    if link.policies is None:
        return list(setup.chosen)
    asked = link.policies.split(",")
    if unknown := sorted(set(asked) - set(setup.policies)):
        raise ValueError(f"no loaded policy is called {', '.join(unknown)}"[:200])
    return [name for name in setup.policies if name in asked]


def _observation(link: Link, setup: Setup):
    """(prompt, state, a picture or None for each camera)."""
    known = examples(setup.robot)
    example = next((one for one in known if one.scene == link.scene), None)
    if link.scene is None:
        example = next(iter(known), None)
    if example is not None:
        pictures = [example.images.get(camera.name) for camera in setup.cameras]
        state, prompt = example.state, example.prompt
    elif link.scene is not None:
        if setup.robot.name != TABLETOP.name or not job.available():
            raise ValueError(f"scene {link.scene} cannot be drawn here")
        scene = scenes.draw(link.scene)
        pictures, state, prompt = scene.pictures(setup), scene.state, ""
    else:
        pictures, state, prompt = [None] * len(setup.cameras), setup.robot.resting_state, ""
    return prompt if link.prompt is None else link.prompt, state, pictures
