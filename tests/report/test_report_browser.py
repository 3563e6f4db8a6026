"""The page in a headless browser: it renders, its tokens answer, nothing overflows, the console stays empty."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_outputs import HOSTILE

from pipeline.report import ReportInputs, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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
    "--enable-logging=stderr",
)
SLOTS = ("token", "without", "withThought", "improvement", "weight", "thought")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


@pytest.fixture
def page(inputs: ReportInputs, tmp_path: Path) -> Path:
    write_report(inputs, tmp_path / "out")
    return tmp_path / "out" / "index.html"


def browse(page: Path) -> tuple[str, list[str]]:
    """The page's DOM after its script ran, and what the browser wrote on the console."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={page.parent / 'browser'}", "--dump-dom", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def with_script(page: Path, script: str) -> Path:
    """A copy of the page that runs ``script`` at its end."""
    copy = page.with_name("acted.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"))
    return copy


def test_renders_without_console_message(page: Path):
    dom, console = browse(page)
    assert "Did thinking help?" in dom and dom.count("<svg") == 10
    assert console == []


def test_console_messages_are_seen(page: Path):
    """Guards the test above: a failing script does show in what ``browse`` returns."""
    _, console = browse(with_script(page, "missing()"))
    assert len(console) == 1 and "missing is not defined" in console[0]


@pytest.mark.parametrize("event", ["pointerover", "focusin", "click"])
def test_token_shows_what_is_behind_it(page: Path, event: str):
    act = f"document.querySelectorAll('.t')[8].dispatchEvent(new Event('{event}', {{bubbles: true}}))"
    dom, console = browse(with_script(page, act))
    shown = [html.unescape(re.search(rf'data-slot="{slot}">(.*?)</dd>', dom, re.DOTALL)[1]) for slot in SLOTS]
    assert console == []
    assert shown[0] == HOSTILE and shown[5] == f"a primate lives in text 0 {HOSTILE}⏎\n"
    assert float(shown[1]) - float(shown[2].replace("−", "-")) == pytest.approx(
        float(shown[3].replace("−", "-")), abs=2e-3
    )
    assert shown[4] == "0.250"


def test_arrow_key_moves_to_the_next_token(page: Path):
    act = (
        "const first = document.querySelector('.t'); first.focus();"
        "first.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));"
        "document.title = 'at ' + document.activeElement.dataset.token"
    )
    assert "<title>at :</title>" in browse(with_script(page, act))[0]


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_overflows_sideways(page: Path, width: int):
    """In a frame, since a headless window cannot be as narrow as a phone."""
    wrapper = page.with_name("wrapper.html")
    wrapper.write_text(
        f'<iframe id="frame" style="border: 0; width: {width}px" srcdoc="{html.escape(page.read_text())}">'
        "</iframe><script>onload = () => document.title ="
        " 'wide ' + document.getElementById('frame').contentDocument.documentElement.scrollWidth</script>"
    )
    assert f"<title>wide {width}</title>" in browse(wrapper)[0]
