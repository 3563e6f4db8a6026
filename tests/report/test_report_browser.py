"""The page in a headless browser: it renders, its tokens answer, nothing overflows, the console stays empty."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_outputs import HOSTILE, PASSAGE
from report_page import Page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr"),
)
DARK = "--blink-settings=preferredColorScheme=0"
LIGHT = "--blink-settings=preferredColorScheme=1"
SLOTS = ("token", "without", "withThought", "improvement", "weight", "thought")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """The page's DOM after its script ran, and what the browser wrote on the console."""
    command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={profile / 'browser'}", "--dump-dom", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def result(page: Page, folder: Path, script: str, *flags: str):
    """What ``script`` returns at the page's end; the console must stay empty."""
    copy = folder / "acted.html"
    act = f"document.body.dataset.result = JSON.stringify((() => {{ {script} }})())"
    copy.write_text(page.html.replace("</body>", f"<script>{act}</script></body>"))
    dom, console = browse(copy, folder, *flags)
    assert console == []
    return json.loads(html.unescape(re.search(r'data-result="([^"]*)"', dom)[1]))


def test_console_messages_are_seen(page: Page, tmp_path: Path):
    """Guards the test above: a failing script does show in what ``browse`` returns."""
    copy = tmp_path / "broken.html"
    copy.write_text(page.html.replace("</body>", "<script>missing()</script></body>"))
    _, console = browse(copy, tmp_path)
    assert len(console) == 1 and "missing is not defined" in console[0]


def test_token_shows_what_is_behind_it(page: Page, tmp_path: Path):
    """The clearest token at first; then a token that is hovered, tapped (a touch, then a click) or has the focus."""
    script = """
        const slots = () => [...document.querySelectorAll('[data-slot]')].map((slot) => slot.textContent);
        const tokens = [...document.querySelectorAll('.t')];
        const over = (token, pointerType) =>
            token.dispatchEvent(new PointerEvent('pointerover', {bubbles: true, pointerType}));
        const first = [...document.querySelectorAll('.t.on')].map((token) => 'clearest' in token.dataset);
        const shown = [
            (token) => over(token, 'mouse'),
            (token) => { over(token, 'touch'); token.click(); },
            (token) => token.focus(),
        ].map((act) => { over(tokens[0], 'mouse'); const other = slots(); act(tokens[8]); return [other, slots()]; });
        return [first, shown]"""
    first, acts = result(page, tmp_path, script)
    assert first == [True] and len(acts) == 3
    for other, values in acts:
        shown = dict(zip(SLOTS, values, strict=True))
        assert other[0] == "Q" and shown["token"] == HOSTILE
        assert shown["thought"] == f"a primate lives in text 0 {HOSTILE}⏎" and shown["weight"] == "0.250"
        without, with_thought, improvement = (
            float(shown[name].replace("−", "-")) for name in ("without", "withThought", "improvement")
        )
        assert without - with_thought == pytest.approx(improvement, abs=2e-3)


def test_keys_move_inside_a_passage_and_leave_one_tab_stop(page: Page, tmp_path: Path):
    """The numbers of the tokens that have the focus after each key, and of those that Tab stops at in the end."""
    keys = ["ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft", "a", "ArrowRight"]
    script = f"""
        const tokens = [...document.querySelectorAll('.t')];
        const press = (key) => document.activeElement.dispatchEvent(
            new KeyboardEvent('keydown', {{key, bubbles: true, cancelable: true}}));
        const top = () => document.activeElement.getClientRects()[0].top;
        tokens[0].focus(); const first = top();
        press('ArrowDown'); const second = top();
        press('ArrowUp'); const lines = [second > first, top() === first];
        tokens[0].focus();
        const at = {json.dumps(keys)}.map((key) => {{ press(key); return tokens.indexOf(document.activeElement); }});
        return [lines, at, tokens.flatMap((token, i) => token.tabIndex === 0 ? [i] : [])]"""
    last = PASSAGE - 1
    lines, at, stops = result(page, tmp_path, script)
    assert lines == [True, True], "up and down move by a line"
    assert (at, stops) == ([1, 2, 1, last, last, 0, 0, 0, 1], [1, PASSAGE])


def test_all_that_takes_the_focus_shows_it(page: Page, tmp_path: Path):
    script = (
        "return [...document.querySelectorAll('a, summary, [tabindex=\"0\"]')].filter((one) => {"
        "one.focus({focusVisible: true}); const style = getComputedStyle(one);"
        "return document.activeElement === one && style.outlineStyle === 'none'; }).map((one) => one.outerHTML)"
    )
    assert result(page, tmp_path, script) == []


def test_follows_the_dark_scheme(page: Page, tmp_path: Path):
    """Text is light on dark, and so are the drawings' words, lines and bars."""
    script = (
        "const light = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);"
        "const body = getComputedStyle(document.body), text = document.querySelector('#kinds svg text');"
        "return [light(body.backgroundColor), light(body.color), light(getComputedStyle(text).fill)]"
    )
    paper, ink, drawn = result(page, tmp_path, script, DARK)
    assert paper < 150 and ink > 600 and drawn > 450
    paper, ink, drawn = result(page, tmp_path, script, LIGHT)
    assert paper > 700 and ink < 150 and drawn < 350


@pytest.mark.parametrize("method", ["quiet_star", "pause", "no_thought"])
def test_renders_without_console_message_and_nothing_overflows_sideways(
    pages: dict[str, Page], method: str, tmp_path: Path
):
    """At 360, 768 and 1200 pixels, folded parts open; in a frame, as a headless window cannot be that narrow."""
    dom, console = browse(pages[method].file, tmp_path)
    assert "How sure are we?" in dom and dom.count("<svg") >= 5
    assert console == []
    wrapper = tmp_path / "wrapper.html"
    source = html.escape(pages[method].html)
    wrapper.write_text(
        f'<iframe id="frame" style="border: 0" srcdoc="{source}"></iframe><script>'
        "onload = () => { const page = frame.contentDocument;"
        "for (const one of page.querySelectorAll('details')) one.open = true;"
        "document.title = 'wide ' + [360, 768, 1200].map((width) => "
        "{ frame.style.width = width + 'px'; return page.documentElement.scrollWidth; }) }</script>"
    )
    assert "<title>wide 360,768,1200</title>" in browse(wrapper, tmp_path)[0]
