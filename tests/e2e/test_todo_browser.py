"""examples/todo in two windows of a browser: live, offline and back. Built by Vite."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.browser import Watched, chromium, watched
from tests.support.node import npm_install
from tests.support.process import ROOT, ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
TODO = ROOT / "examples" / "todo"
SHOWS = "wanted => [...document.querySelectorAll('li')].map(li => li.className + ':' +"
SHOWS += " li.querySelector('span').textContent).join() === wanted"


class Quiet(SimpleHTTPRequestHandler):
    """`python -m http.server` without its log."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """The origin that serves the built page."""
    npm_install(TODO)
    npx = shutil.which("npx")
    assert npx is not None
    built = tmp_path / "built"
    command = [npx, "vite", "build", "--outDir", str(built), "--logLevel", "error"]
    done = subprocess.run(command, cwd=TODO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    handler = partial(Quiet, directory=str(built))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{site.server_port}"
        finally:
            site.shutdown()
            thread.join()


def shows(window: Watched, wanted: str) -> None:
    window.page.wait_for_function(SHOWS, arg=wanted)


def add(window: Watched, text: str) -> None:
    window.page.fill("#text", text)
    window.page.click("button:text('Add')")


def test_two_windows_offline_and_back(tmp_path: Path, page: str) -> None:
    shutil.copy(TODO / "app.py", tmp_path / "app.py")
    flags = ("serve", "app:app", "--cors-origins", page)
    with (
        chromium() as browser,
        ServerProcess(tmp_path, *flags) as server,
        watched(browser, page, server.url) as ann,
        watched(browser, page, server.url) as bob,
    ):
        for window, user in ((ann, "ann"), (bob, "bob")):
            window.allowed.append("ERR_INTERNET_DISCONNECTED|WebSocket|Failed to fetch")
            window.page.goto(f"{page}/?server={server.url}&user={user}")
            window.page.wait_for_function("document.querySelector('#state').textContent !== ''")
        add(ann, "milk")
        shows(bob, ":milk")
        bob.page.check("li input")
        shows(ann, "done:milk")
        ann.context.set_offline(True)
        add(ann, "bread")
        shows(ann, "done:milk,:bread")
        add(bob, "tea")
        shows(bob, "done:milk,:tea")
        ann.picture("todo-offline")
        ann.context.set_offline(False)
        ann.page.reload()
        bob.page.wait_for_function("document.querySelectorAll('li').length === 3")
        ann.page.wait_for_function("document.querySelectorAll('li').length === 3")
        bob.page.click("li:has-text('milk') button")
        ann.page.wait_for_function("document.querySelectorAll('li').length === 2")
        ann.page.wait_for_function(
            "document.querySelector('#state').textContent.endsWith('all saved')"
        )
