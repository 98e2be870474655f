"""The page in a real browser: it fits its window, shows something, and needs no network."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.report import write_report
from tests.helpers import PATIENCE_S

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not on the PATH; on Debian: apt-get install chromium"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=10000",
)
# The page itself runs no script and forbids them; only this copy of it measures itself. It stands in a frame of the
# wanted width because a browser window is never narrower than 500 pixels.
PROBE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach((part) => part.open = true);
  const outside = (part) => part.getBoundingClientRect().right > innerWidth + 1;
  const style = (choice, key) => getComputedStyle(document.querySelector(choice))[key];
  parent.postMessage({
    inner: innerWidth,
    scroll: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("body *")].filter(outside)
      .filter((part) => !part.closest(".scroll *, nav *, pre *, svg *")).map((part) => part.outerHTML.slice(0, 80)),
    broken: [...document.images].filter((image) => !image.complete || !image.naturalWidth).length,
    images: document.images.length,
    page: style("body", "backgroundColor"),
    text: style("body", "color"),
    caption: style(".say", "color"),
    line: style(".chart path[style*='--s0']", "stroke"),
    loaded: performance.getEntriesByType("resource").filter((one) => !one.name.startsWith("data:")).length,
  }, "*");
});</script>"""
FRAME = """<!doctype html><title>nothing</title><script>addEventListener("message", (event) => {
  document.title = "probe" + btoa(encodeURIComponent(JSON.stringify(event.data))) + "end";
});</script><iframe src="probe.html" style="width: %dpx; height: 2000px; border: 0"></iframe>"""


@dataclass(frozen=True)
class Look:
    probe: dict[str, object]
    picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def browse(page: Path, folder: Path, width: int, *more: str) -> Look:
    assert CHROMIUM is not None
    shot = folder / "shot.png"
    text = page.read_text(encoding="utf-8")
    without_policy = re.sub(r"<meta http-equiv=[^>]*>", "", text, count=1)
    assert without_policy != text
    (folder / "probe.html").write_text(without_policy.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME % width, encoding="utf-8")
    base = [CHROMIUM, *FLAGS, *more, f"--window-size={width},2400", f"--user-data-dir={folder / 'profile'}"]
    dumped = subprocess.run(
        [*base, "--dump-dom", (folder / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    found = re.search("<title>probe(.*?)end</title>", dumped.stdout)
    assert found, dumped.stderr[-2000:]
    subprocess.run(
        [*base, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=PATIENCE_S, check=True
    )
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return Look(json.loads(urllib.parse.unquote(base64.b64decode(found[1]).decode("ascii"))), pixels)


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([runs], tmp_path_factory.mktemp("page") / "report.html").path


@pytest.fixture(scope="module")
def wide(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Look:
    return browse(page, tmp_path_factory.mktemp("wide"), 1280)


@pytest.fixture(scope="module")
def narrow(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Look:
    return browse(page, tmp_path_factory.mktemp("narrow"), 400)


@pytest.mark.parametrize(("name", "width"), [("wide", 1280), ("narrow", 400)])
def test_the_page_fits_its_window_and_is_not_blank(
    request: pytest.FixtureRequest, name: str, width: int
) -> None:
    look: Look = request.getfixturevalue(name)
    probe = look.probe
    assert probe["inner"] == width
    assert probe["scroll"] == width
    assert probe["wide"] == []
    assert probe["broken"] == 0
    assert int(str(probe["images"])) > 20
    assert probe["loaded"] == 0
    assert look.picture.shape == (2400, width, 3)
    # Text, lines and pictures: many colours, spread over the whole height of the window.
    assert len(np.unique(look.picture.reshape(-1, 3), axis=0)) > 500
    for band in np.array_split(look.picture, 6):
        assert band.std() > 5


def test_a_dark_page_is_dark_and_its_charts_are_light(wide: Look, page: Path, tmp_path: Path) -> None:
    dark = browse(page, tmp_path, 800, "--blink-settings=preferredColorScheme=0")
    assert np.median(wide.picture) > 230
    assert np.median(dark.picture) < 40
    assert wide.probe["line"] != dark.probe["line"]
    for look in (wide, dark):
        # WCAG 2 AA asks for 4.5 between text and page, and for 3 between a line of a chart and page.
        assert contrast(str(look.probe["text"]), str(look.probe["page"])) > 7
        assert contrast(str(look.probe["caption"]), str(look.probe["page"])) > 4.5
        assert contrast(str(look.probe["line"]), str(look.probe["page"])) > 3


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two CSS colours ``rgb(r, g, b)`` (WCAG 2)."""

    def luminance(colour: str) -> float:
        channels = np.array([int(v) for v in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
