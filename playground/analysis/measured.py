"""Whose numbers a report holds, and of which policies one can be asked for."""

import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import Any, Self

from playground.trace import Family, PolicyInfo


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """A report on one policy. policy: its name; the others: as in `PolicyInfo`, so that badge and
    notice stand wherever its numbers do."""

    policy: str
    title: str
    family: Family
    badge: str
    notice: str
    revision: str

    @classmethod
    def on(cls, info: PolicyInfo, **fields: Any) -> Self:
        """The report on this policy. fields: of the report itself."""
        return cls(
            policy=info.name,
            title=info.title,
            family=info.family,
            badge=info.badge,
            notice=info.notice,
            revision=info.revision,
            **fields,
        )


def check_names(
    policies: Mapping[str, object], names: Sequence[str], observations: Container[str]
) -> None:
    """Raises ValueError for names that are not loaded, come twice or have no observation."""
    if not names or (missing := [name for name in names if name not in policies]):
        asked = ", ".join(missing) if names else "nothing"
        raise ValueError(f"no policy is called {asked}; loaded: {', '.join(policies)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a policy is measured once; {', '.join(names)} came")
    if lacking := [name for name in names if name not in observations]:
        raise ValueError(f"there is no observation for {', '.join(lacking)}")
