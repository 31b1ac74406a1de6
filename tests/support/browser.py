"""The distribution's Chromium without a window, and pages that remember what went wrong in them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.process import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PICTURES = ROOT / "test-output"
PATIENCE_MS = 20_000
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser; skips the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page of one origin. `check` fails for errors in its console that are not `allowed`, for
    exceptions, and for every request or socket to somewhere else.
    """

    def __init__(self, browser: Browser, *origins: str, **options: Any) -> None:
        self.allowed: list[str] = []
        self._origins = [*origins, *("ws" + url.removeprefix("http") for url in origins)]
        self._errors: list[str] = []
        self._asked: list[str] = []
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self._errors.append(f"exception: {error}"))
        self.page.on("request", lambda request: self._asked.append(request.url))
        self.page.on("websocket", lambda socket: self._asked.append(socket.url))

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._errors.append(f"{message.type}: {message.text}")

    def check(self) -> None:
        """Raises AssertionError with what went wrong."""
        wrong = [e for e in self._errors if not any(re.search(a, e) for a in self.allowed)]
        assert not wrong, wrong
        assert self._asked, "the page asked for nothing at all"
        known = tuple(f"{origin}/" for origin in self._origins)
        foreign = [url for url in self._asked if not url.startswith(known)]
        assert not foreign, foreign

    def picture(self, name: str) -> None:
        """Keep how the page looks now, for people."""
        PICTURES.mkdir(exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png")


@contextmanager
def watched(browser: Browser, *origins: str, **options: Any) -> Iterator[Watched]:
    """A page that is checked at the end, where the test has not failed before."""
    opened = Watched(browser, *origins, **options)
    try:
        yield opened
        opened.check()
    finally:
        opened.context.close()
