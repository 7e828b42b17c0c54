"""The options that plugins with data share."""

from __future__ import annotations

import attrs
import pytest

from hookloop.data.options import SplitOptions
from hookloop.plugins.downscaling.data_options import SplitConfig
from hookloop.plugins.forecast.options import StatesConfig


@pytest.mark.parametrize(
    ("split", "required"), [(SplitConfig, ["coarse", "fine"]), (StatesConfig, ["fields"])]
)
def test_every_split_has_the_shared_options_behind_what_must_be_given(
    split: type[attrs.AttrsInstance], required: list[str]
) -> None:
    """People read first what they have to write; the shared options mean the same for every plugin."""
    options = attrs.fields_dict(split)
    assert list(options)[: len(required)] == required
    assert [name for name, option in options.items() if option.default is attrs.NOTHING] == required
    for name, option in attrs.fields_dict(SplitOptions).items():
        assert options[name].metadata == option.metadata
