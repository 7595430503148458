"""The page in a real browser: on a phone, on paper, and where its jumps lead. Needs Debian's ``chromium``,
which is too big for every ``make test``: ``make test-nightly`` installs it.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.report.page.write import write_page
from harness.result import Crash, Verdict
from tests.programs import needs
from tests.unit.records import result
from tests.unit.test_page import CRASH, EVIL, read

CHROMIUM = shutil.which("chromium")
pytestmark = needs("chromium", "test-nightly")

#: Looks at the page in a frame as wide as a telephone, then follows its jump to the crash.
PROBE = """<!doctype html><body><iframe id=f src="page/index.html" style="width:360px;height:640px;border:0"></iframe>
<pre id=out></pre><script>
const frame = document.getElementById("f");
frame.onload = () => {
  const page = frame.contentDocument, crash = page.getElementById("s0c0");
  const told = {width: page.documentElement.scrollWidth, title: page.title, scripts: page.scripts.length};
  page.querySelectorAll("details").forEach(item => { item.open = false; });
  told.hidden = !crash.checkVisibility();
  page.querySelector('a[href="#s0c0"]').click();
  setTimeout(() => {
    const place = crash.getBoundingClientRect();
    told.visible = crash.checkVisibility() && place.height > 0 && place.top >= -1 && place.bottom <= 640;
    told.text = page.body.textContent.includes("<script>alert(1)<\\/script>");
    document.getElementById("out").textContent = JSON.stringify(told);
  }, 300);
};
</script>"""


def chromium(tmp_path: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=180, check=True, stdin=subprocess.DEVNULL
    ).stdout


@pytest.fixture
def page(tmp_path: Path) -> Path:
    directory = tmp_path / "results" / "one"
    directory.mkdir(parents=True)
    lines = [
        f"[  1.{number}] a line that is rather long, as a kernel's lines are, and then some" for number in range(300)
    ]
    (directory / "console-guest.log").write_text("\n".join([*lines, EVIL, *CRASH, *lines]))
    (directory / "qemu.argv").write_text("-device " + "x" * 700)
    failed = result(
        verdict=Verdict.FAIL,
        id="balloon/" + "a-long-name-" * 12,
        title=EVIL * 4,
        reason="guest: " + "BUG" * 100,
        results=directory,
        crashes=[Crash("guest", "BUG: " + "x" * 200, "bug", CRASH)],
    )
    rows: list[dict[str, Any]] = [result(number, machine=f"machine-{number}") for number in range(12)]
    return write_page(tmp_path / "page", [read(item) for item in (failed, *rows)], [], None)


def test_on_a_phone(page: Path, tmp_path: Path) -> None:
    (tmp_path / "probe.html").write_text(PROBE)
    arguments = ("--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    dom = chromium(tmp_path, *arguments, f"file://{tmp_path}/probe.html")
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    told = json.loads(html.unescape(found[1]))
    assert told["width"] <= 360, "nothing is wider than the screen"
    assert told["hidden"] and told["visible"], "the jump opens what the crash is folded into"
    assert told["scripts"] == 0 and told["text"]


def test_on_paper(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={target}", f"file://{page}")
    assert target.read_bytes().startswith(b"%PDF")
    assert target.stat().st_size > 20_000
