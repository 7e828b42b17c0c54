"""What was found out about fields, remembered until the fields, or what is asked about them, change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from hookloop.data import statistics_cache
from hookloop.data.calendars import calendar_of, labels
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from hookloop.data.fields import Fields
    from hookloop.data.statistics_cache import Plain


@frozen(eq=False)
class Remembered:
    """A place for one finding."""

    key: str | None
    """``None`` where nothing is kept, or it cannot be told whether the fields have changed."""
    events: FilteringBoundLogger

    @classmethod
    def of(
        cls, sides: Sequence[Fields], what: Mapping[str, Plain], events: FilteringBoundLogger
    ) -> Remembered:
        """The place for what is found out about *sides*.

        :param what: everything else that it depends on.
        """
        if statistics_cache.cache_directory() is None:
            return cls(None, events)
        parts = [part for side in sides for own in side.parts.values() for part in own]
        reached = {part.path: part.storage_options for part in parts}
        known = {"sides": [_selection(side) for side in sides], **what}
        try:
            return cls(statistics_cache.fingerprint(list(reached), known, reached), events)
        except OSError as error:
            events.info("statistics.not_kept", why=str(error))
            return cls(None, events)

    def recall(self) -> Plain | None:
        """What was kept; ``None`` where nothing was, or it is damaged, which is told."""
        if self.key is None:
            return None
        try:
            return statistics_cache.recall(self.key)
        except HookloopError as error:
            self.events.warning("statistics.damaged", why=str(error))
            return None

    def keep(self, found: Plain) -> None:
        """Keep it, where there is a place; where there is none that is told."""
        if self.key is None:
            return
        try:
            statistics_cache.keep(self.key, found)
        except OSError as error:
            self.events.info("statistics.not_kept", why=str(error), hint="HOOKLOOP_CACHE names another place")


def _selection(fields: Fields) -> Plain:
    """What of its files is used, and how."""
    return {
        "times": [calendar_of(fields.times), *labels(fields.times)],
        "members": fields.members,
        "rows": fields.latitude.index.tolist(),
        "columns": fields.longitude.index.tolist(),
        "fill": fields.fill,
        "variables": {
            name: [
                [part.path, part.name, {dim: int(at) for dim, at in part.fixed.items()}, len(part.index)]
                for part in parts
            ]
            for name, parts in fields.parts.items()
        },
    }
