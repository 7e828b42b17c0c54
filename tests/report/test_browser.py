"""The page in a real browser, where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.image import imread
from written_run import WrittenRun, whole_run

from hookloop.report.page import write

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def seen(page: Path, *flags: str) -> NDArray[np.float64]:
    """A picture of the top of *page*, ``[row, column, colour]`` from 0 to 1."""
    picture = page.parent / "seen.png"
    subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={page.parent / 'profile'}",
            "--window-size=1000,1400",
            f"--screenshot={picture}",
            *flags,
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return np.asarray(imread(picture), dtype=float)[..., :3]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(whole_run(WrittenRun(tmp_path_factory.mktemp("browser") / "run")).directory)


def test_a_browser_shows_the_page_light_and_dark(page: Path) -> None:
    """The paper is white or nearly black, and what is written on it is not."""
    light = seen(page, "--blink-settings=preferredColorScheme=1")
    dark = seen(page, "--blink-settings=preferredColorScheme=0")
    np.testing.assert_allclose(light[-1, 0], 1.0, atol=0.01)
    np.testing.assert_allclose(dark[-1, 0], np.array([0x15, 0x18, 0x1C]) / 255, atol=0.01)
    assert light.min() < 0.2
    assert dark.max() > 0.8


def test_a_browser_shows_the_curves(page: Path) -> None:
    """Their blue is on the page, so that the images were decoded under the page's own policy."""
    picture = seen(page, "--blink-settings=preferredColorScheme=1", "--window-size=1000,3000")
    blue = np.abs(picture - np.array([0x00, 0x72, 0xB2]) / 255).max(-1) < 0.02
    assert blue.sum() > 200
