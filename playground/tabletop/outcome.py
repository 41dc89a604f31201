"""How an episode ended. Needs no simulator, so that who only shows rollouts can name it."""

import dataclasses

from playground import codec


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """In a sentence. success: None where nobody judged."""

    success: bool | None
    reason: str
