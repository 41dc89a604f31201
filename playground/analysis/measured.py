"""Whose numbers a report holds."""

import dataclasses
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
