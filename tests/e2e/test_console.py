"""The console in a real browser against a real server process."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import PATIENCE_MS, Watched, chromium, watched
from tests.support.process import ServerProcess, admin_token

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NAMES = ["doc:a", "doc:b", "run:r1", "run:r2"]
UNAUTHORIZED = r"Failed to load resource: .* 401 |token=wrong' failed: HTTP Authentication"
OFFLINE = r"ERR_CONNECTION_|WebSocket connection to .* failed|ERR_EMPTY_RESPONSE"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path, "dev") as started:
        for name in NAMES:
            started.publish(name, "message:m0", {"text": f"first of {name}"})
        yield started


@pytest.fixture
def console(browser: Browser, server: ServerProcess) -> Iterator[Watched]:
    with watched(browser, server.url) as opened:
        yield opened


def at(page: Page, name: str) -> Locator:
    return page.get_by_test_id(name)


def expect(found: Any) -> Any:
    from playwright.sync_api import expect as expects

    expects.set_options(timeout=PATIENCE_MS)
    return expects(found)


def scopes(page: Page) -> Locator:
    return at(page, "scope-list").locator(".name")


def envelopes(page: Page) -> Locator:
    return at(page, "tail").locator("li")


def open_console(console: Watched, server: ServerProcess, scope: str = "") -> Page:
    console.page.goto(f"{server.url}/console" + (f"#{scope}" if scope else ""))
    return console.page


def test_from_the_list_to_a_record(console: Watched, server: ServerProcess) -> None:
    page = open_console(console, server)
    expect(scopes(page)).to_have_text(NAMES)
    at(page, "scope-filter").fill("run:")
    expect(scopes(page)).to_have_text(["run:r1", "run:r2"])
    at(page, "scope-filter").fill("nothing")
    expect(at(page, "scopes-empty")).to_have_text("No scope begins like this.")
    at(page, "scope-filter").fill("run:")
    scopes(page).filter(has_text="run:r2").click()

    expect(at(page, "scope-name")).to_have_text("run:r2")
    expect(page).to_have_url(f"{server.url}/console#run:r2")
    expect(at(page, "scope-list").locator("[aria-current=page]")).to_have_text(re.compile("run:r2"))
    expect(envelopes(page)).to_have_count(1)
    expect(at(page, "entities").locator("li")).to_have_text(re.compile("message:m0.*first of"))
    envelopes(page).locator("summary").click()
    expect(envelopes(page).locator("pre")).to_contain_text('"text": "first of run:r2"')
    expect(at(page, "head")).to_have_text("1")
    expect(at(page, "durable")).to_have_text("1")


def test_the_tail_and_the_entities_are_live(console: Watched, server: ServerProcess) -> None:
    page = open_console(console, server, "run:r1")
    expect(envelopes(page)).to_have_count(1)
    server.publish("run:r1", "message:m1", {"text": "żółw 𝄞 <b>not bold</b>"})
    expect(envelopes(page)).to_have_count(2)
    expect(envelopes(page).first).to_have_attribute("data-seq", "2")
    row = at(page, "entities").locator("[data-key='message:m1']")
    expect(row).to_contain_text("żółw 𝄞 <b>not bold</b>")
    expect(row.locator("b")).to_have_count(0)
    row.locator("summary").click()
    server.publish("run:r1", "message:m1", {"text": "changed"})
    expect(row.locator("pre")).to_have_text('{\n  "text": "changed"\n}')
    expect(at(page, "entity-count")).to_have_text("2")
    at(page, "entity-filter").fill("m0")
    expect(at(page, "entities").locator("li")).to_have_count(1)

    at(page, "tail-pause").click()
    server.publish("run:r1", "message:m2", {"text": "while paused"})
    expect(at(page, "head")).to_have_text("4")
    expect(envelopes(page)).to_have_count(3)
    at(page, "tail-pause").click()
    expect(envelopes(page)).to_have_count(4)


def test_the_form_publishes(console: Watched, server: ServerProcess) -> None:
    page = open_console(console, server)
    at(page, "scope-filter").fill("brand:new/ü 100%")
    at(page, "scope-filter").press("Enter")
    expect(at(page, "scope-name")).to_have_text("brand:new/ü 100%")
    at(page, "publish-key").fill("note:n1")
    at(page, "publish-value").fill('{"done": true}')
    at(page, "publish").click()
    expect(at(page, "publish-result")).to_have_text("Stored at seq 1.")
    expect(at(page, "entities").locator("li")).to_have_text(re.compile('note:n1.*"done":true'))
    expect(scopes(page)).to_have_text(sorted([*NAMES, "brand:new/ü 100%"]))

    at(page, "publish-value").fill("{done}")
    at(page, "publish").click()
    expect(at(page, "publish-result")).to_contain_text("The value is no JSON")
    at(page, "publish-value").fill("{}")
    at(page, "publish-key").fill("no kind")
    at(page, "publish").click()
    expect(at(page, "publish-result")).to_have_text(re.compile("^bad_"))
    expect(at(page, "head")).to_have_text("1")


def test_a_link_leads_to_a_scope(console: Watched, server: ServerProcess) -> None:
    page = open_console(console, server, "doc:b")
    expect(at(page, "scope-name")).to_have_text("doc:b")
    page.evaluate("location.hash = '#run:r1'")
    expect(at(page, "scope-name")).to_have_text("run:r1")
    expect(at(page, "entities")).to_contain_text("first of run:r1")
    expect(page).to_have_title(re.compile("^run:r1 .* Holdfast console$"))
    page.go_back()
    expect(at(page, "entities")).to_contain_text("first of doc:b")
    expect(envelopes(page)).to_have_count(1)
    page.reload()
    expect(at(page, "scope-name")).to_have_text("doc:b")


def test_the_badge_follows_a_restart(console: Watched, server: ServerProcess) -> None:
    console.allowed = [OFFLINE]
    page = open_console(console, server, "run:r1")
    badge = at(page, "connection")
    expect(badge).to_have_attribute("data-state", "open")
    expect(scopes(page)).to_have_count(len(NAMES))
    assert server.stop() == 0
    expect(badge).to_have_attribute("data-state", "waiting")
    expect(badge).to_have_text(re.compile(r"reconnecting in \d"))
    server.start()
    expect(badge).to_have_text("connected")
    server.publish("run:r1", "message:m1", {"text": "after the restart"})
    expect(envelopes(page)).to_have_count(2)
    expect(at(page, "entities")).to_contain_text("after the restart")
    expect(scopes(page)).to_have_text(NAMES)


def test_more_than_a_page_of_scopes(browser: Browser, tmp_path: Path) -> None:
    names = [f"many:{n:03d}" for n in range(130)]
    with ServerProcess(tmp_path, "dev") as server:
        for name in names:
            server.publish(name, "n:1", {})
        with watched(browser, server.url) as console:
            page = open_console(console, server)
            more = at(page, "scopes-more")
            for shown in (50, 100):
                expect(scopes(page)).to_have_text(names[:shown])
                more.click()
            expect(scopes(page)).to_have_text(names)
            expect(more).to_be_hidden()
            at(page, "scope-filter").fill("many:12")
            expect(scopes(page)).to_have_text(names[120:])


def test_the_token_form(browser: Browser, tmp_path: Path) -> None:
    token = admin_token()
    with ServerProcess.with_tokens(tmp_path) as server:
        server.publish("run:r1", "message:m1", {"text": "for the admin"}, token)
        with watched(browser, server.url) as console:
            console.allowed = [UNAUTHORIZED]
            page = open_console(console, server, "run:r1")
            expect(at(page, "token-input")).to_be_focused()
            expect(at(page, "scopes-empty")).to_have_text("The server asks for an access token.")
            expect(at(page, "scope-error")).to_contain_text("unauthenticated")
            expect(scopes(page)).to_have_count(0)

            at(page, "token-input").fill("wrong")
            at(page, "token-save").click()
            expect(at(page, "scopes-empty")).to_have_text("The server does not take this token.")
            expect(at(page, "token-input")).to_be_focused()

            at(page, "token-input").fill(token)
            at(page, "token-save").click()
            expect(scopes(page)).to_have_text(["run:r1"])
            expect(at(page, "connection")).to_have_text("connected")
            expect(at(page, "token-form")).to_be_hidden()
            expect(at(page, "scope-error")).to_be_hidden()
            expect(at(page, "entities")).to_contain_text("for the admin")

            page.reload()  # the tab keeps it
            expect(scopes(page)).to_have_text(["run:r1"])
            at(page, "token-toggle").click()
            at(page, "token-clear").click()
            expect(at(page, "scopes-empty")).to_have_text("The server asks for an access token.")
            expect(scopes(page)).to_have_count(0)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("console.error('broken')", "error: broken"),
        ("setTimeout(() => { throw new Error('oops') })", "oops"),
        ("new WebSocket('ws://127.0.0.1:9/elsewhere')", "elsewhere"),
    ],
)
def test_a_page_that_misbehaves_is_told_on(
    browser: Browser, server: ServerProcess, script: str, complaint: str
) -> None:
    page = Watched(browser, server.url)
    try:
        open_console(page, server)
        page.check()
        page.allowed = [OFFLINE]
        page.page.evaluate(f"async () => {{ await ({script}) }}")
        page.page.wait_for_timeout(100)
        with pytest.raises(AssertionError, match=complaint):
            page.check()
    finally:
        page.context.close()


def test_every_file_the_page_names_is_served(server: ServerProcess) -> None:
    with urllib.request.urlopen(f"{server.url}/console") as response:
        named = re.findall(r'(?:href|src)="(console/[^"]+)"', response.read().decode())
    assert "console/icon.svg" in named
    kinds = {"svg": "image/svg+xml", "css": "text/css", "js": "javascript"}
    for path in named:
        with urllib.request.urlopen(f"{server.url}/{path}") as response:
            assert kinds[path.rsplit(".", 1)[1]] in response.headers["Content-Type"]
    for other in ("/console/other.js", "/console/..%2f..%2fapp.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.url + other)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("console", {"color_scheme": "light"}),
        ("console-dark", {"color_scheme": "dark"}),
        ("console-narrow", {"viewport": {"width": 420, "height": 900}}),
    ],
)
def test_how_it_looks(
    browser: Browser, server: ServerProcess, name: str, options: dict[str, Any]
) -> None:
    for n in range(40):
        server.publish("run:r1", f"message:m{n % 14}", {"text": f"line {n} " + "word " * (n % 9)})
    with watched(browser, server.url, **options) as console:
        page = open_console(console, server, "run:r1")
        expect(envelopes(page)).to_have_count(41)
        expect(at(page, "entities").locator("li")).to_have_count(14)
        expect(scopes(page)).to_have_count(len(NAMES))
        expect(at(page, "connection")).to_have_text("connected")
        envelopes(page).first.locator("summary").click()
        expect(envelopes(page).first.locator("pre")).to_be_visible()
        console.picture(name)
        at(page, "publish").scroll_into_view_if_needed()
        wide = page.evaluate("[document.documentElement, document.querySelector('.layout')]"
                             ".map((e) => e.scrollWidth - e.clientWidth)")  # fmt: skip
        assert wide == [0, 0], "something is wider than the window"
        if "narrow" in name:
            console.picture(f"{name}-below")
