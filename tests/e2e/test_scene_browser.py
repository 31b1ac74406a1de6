"""examples/scene in two windows of a browser: drag, undo, presence, latency, offline and back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Watched, chromium, watched
from tests.support.process import ROOT, ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CUBES = "wanted => [...document.querySelectorAll('#cubes button')].map(b => b.innerText"
CUBES += ".replace(/\\s+/g, ' ')).join('; ') === wanted"
STATE = "wanted => document.querySelector('#state').textContent === wanted"
PEOPLE = "wanted => [...document.querySelectorAll('#people li')].map(li => li.textContent)"
PEOPLE += ".sort().join() === wanted"
AGREE = "document.querySelector('#agree').textContent.startsWith('Same scene')"
# A point of the canvas under which there is a cube, as the pointer's shape tells.
FIND = """() => {
  const canvas = document.querySelector('#canvas');
  const box = canvas.getBoundingClientRect();
  for (let y = 60; y < box.height; y += 8) {
    for (let x = 40; x < box.width; x += 8) {
      const at = { clientX: box.x + x, clientY: box.y + y };
      canvas.dispatchEvent(new PointerEvent('pointermove', at));
      if (canvas.hasAttribute('data-over')) return [at.clientX + 14, at.clientY + 12];
    }
  }
}"""


class Quiet(SimpleHTTPRequestHandler):
    """`python -m http.server` without its log."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The origin that serves the page."""
    handler = partial(Quiet, directory=str(ROOT / "examples" / "scene"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def cubes(window: Watched, wanted: str) -> None:
    window.page.wait_for_function(CUBES, arg=wanted)


def shown(window: Watched) -> str:
    window.page.evaluate(
        "new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))"
    )
    texts = window.page.locator("#cubes button").all_inner_texts()
    return "; ".join(" ".join(text.split()) for text in texts)


def is_in(window: Watched, state: str) -> None:
    window.page.wait_for_function(STATE, arg=state)


def test_two_windows(tmp_path: Path, site: str) -> None:
    light: dict[str, Any] = {"viewport": {"width": 1180, "height": 720}}
    narrow: dict[str, Any] = {"viewport": {"width": 420, "height": 860}, "color_scheme": "dark"}
    start = "Cube 1 -1.8, 0.5, 0.6; Cube 2 0.6, 0.5, -1.2; Cube 3 1.9, 0.5, 1.4"
    with (
        chromium() as browser,
        ServerProcess(tmp_path, "dev", "--cors-origins", site) as server,
        watched(browser, site, server.url, **light) as ann,
        watched(browser, site, server.url, **narrow) as bob,
    ):
        for window, name in ((ann, "Ann"), (bob, "Bob")):
            window.page.goto(f"{site}/index.html?server={server.url}&name={name}")
            cubes(window, start)
        ann.page.wait_for_function(PEOPLE, arg="Ann (you),Bob")
        bob.page.wait_for_function(PEOPLE, arg="Ann,Bob (you)")

        # A drag is seen while it lasts, and is one step of undo.
        x, y = ann.page.evaluate(FIND)
        ann.page.mouse.move(x, y)
        ann.page.mouse.down()
        ann.page.mouse.move(x + 90, y + 40, steps=5)
        dragged = shown(ann)
        assert dragged != start
        cubes(bob, dragged)
        assert bob.page.is_disabled("#undo")
        ann.page.mouse.up()
        is_in(ann, "Live, all saved")
        ann.picture("scene-light")
        bob.picture("scene-narrow-dark")
        cubes(bob, dragged)
        ann.page.click("#undo")
        cubes(bob, start)
        ann.page.keyboard.press("Control+Shift+Z")
        cubes(bob, dragged)

        # By keys, with a slow line: at once here, later there.
        ann.page.fill("#latency", "600")
        bob.page.click("#cubes button >> nth=0")
        bob.page.keyboard.press("ArrowRight")
        bob.page.keyboard.press("PageUp")
        moved = dragged.replace("Cube 1 -1.8, 0.5", "Cube 1 -1.3, 1.0")
        cubes(bob, moved)
        cubes(ann, moved)
        ann.page.fill("#latency", "0")

        # Offline both go on; back, both have both.
        bob.page.check("#offline")
        is_in(bob, "Offline")
        ann.page.wait_for_function(PEOPLE, arg="Ann (you)")
        bob.page.click("#add")
        is_in(bob, "Offline, 1 change to send")
        ann.page.click("#cubes button >> nth=2")
        ann.page.click("#remove")
        one_less = moved.rpartition("; ")[0]
        cubes(ann, one_less)
        bob.picture("scene-offline")
        bob.page.uncheck("#offline")
        is_in(bob, "Live, all saved")
        both = shown(bob)
        assert both.count(";") == 2 and "Cube 4" in both and both.startswith(one_less)
        cubes(ann, both)

        # Colour, and what the page says of the server.
        ann.page.click("#cubes button >> nth=2")
        ann.page.click("#colours label[title=Violet]")
        colour = "document.querySelectorAll('#cubes button')[2].style.getPropertyValue('--colour')"
        bob.page.wait_for_function(f"{colour} === '#9b7be0'")
        ann.page.reload()
        cubes(ann, both)
        ann.page.wait_for_function(AGREE)
