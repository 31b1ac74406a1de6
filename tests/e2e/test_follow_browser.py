"""A growing file in two browser windows: examples/follow.py and examples/follow.html."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.browser import PATIENCE_MS, Watched, chromium, watched
from tests.support.process import ROOT, WAIT_S, ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SHOWS = "wanted => document.querySelector('#text').textContent === wanted"


class Quiet(SimpleHTTPRequestHandler):
    """`python -m http.server` without its log."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def pages() -> Iterator[str]:
    """The origin that serves examples/."""
    handler = partial(Quiet, directory=str(ROOT / "examples"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{site.server_port}"
        finally:
            site.shutdown()
            thread.join()


def wait_for(window: Watched, wanted: str) -> None:
    """Until the window shows exactly this text; fails with both where it does not."""
    from playwright.sync_api import TimeoutError as TooLong

    try:
        window.page.wait_for_function(SHOWS, arg=wanted, timeout=PATIENCE_MS)
    except TooLong:
        assert window.page.locator("#text").text_content() == wanted
        raise


def test_two_windows_show_the_file(tmp_path: Path, pages: str) -> None:
    file = tmp_path / "story.log"
    file.write_text("before anyone looked\n")
    with (
        chromium() as browser,
        ServerProcess(tmp_path, "dev", "--cors-origins", pages) as server,
        watched(browser, pages, server.url) as one,
        watched(browser, pages, server.url) as two,
    ):
        page = f"{pages}/follow.html?server={server.url}&scope=log:story.log"
        program = [sys.executable, str(ROOT / "examples" / "follow.py"), str(file)]
        follower = subprocess.Popen(
            [*program, "--url", server.url, "--poll", "0.02"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        try:
            one.page.goto(page)
            wait_for(one, file.read_text())
            two.page.goto(page)  # later than the first text
            wait_for(two, file.read_text())
            for text in (
                "a second line\n",
                "größer, żółw, 日本語, 𝄞, e\u0301, \u202eright to left\u202c\n",
                "<script>document.title = 'no markup'</script> & \t \x01 end\n",
                "no end of line yet",
                " … and there it is\n" * 200,
            ):
                halves = text.encode()
                with file.open("ab") as out:
                    for half in (halves[: len(halves) // 2], halves[len(halves) // 2 :]):
                        out.write(half)
                        out.flush()
                for window in (one, two):
                    wait_for(window, file.read_text())
            assert one.page.title() == two.page.title() == "log:story.log"
            assert one.page.locator("#state").text_content() == "open"
            file.rename(tmp_path / "story.log.1")
            file.write_text("a new file\n")
            for window in (one, two):
                wait_for(window, (tmp_path / "story.log.1").read_text() + "a new file\n")
            one.picture("follow")
        finally:
            follower.terminate()
            assert follower.wait(WAIT_S) == 0
