"""What files say of their variables that is true of generated ones too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hookloop.data.opening import open_datasets

if TYPE_CHECKING:
    from hookloop.data.fields import Fields

_CARRIED = ("units", "standard_name", "long_name", "cell_methods")


def attributes_of(fields: Fields) -> dict[str, dict[str, str]]:
    """Give the CF attributes of each variable, from its first file.

    :raises HookloopError: where that cannot be opened.
    """
    found: dict[str, dict[str, str]] = {}
    for name, (part, *_) in fields.parts.items():
        for data in open_datasets(part.path, part.storage_options):
            with data:
                own = data[part.name].attrs if part.name in data.variables else {}
                found.setdefault(name, {}).update({key: str(own[key]) for key in _CARRIED if key in own})
    return found
