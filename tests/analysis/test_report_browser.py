"""The report in a headless browser: its sections, its scripts, and nothing on the console."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from detrx.analysis.report import Options, build_report, read_run
from tests.analysis.report_runs import EVIL, PLAIN, SECTIONS, Page, small_dataset, write_run

NAMES = ("chromium", "chromium-browser", "google-chrome")

# Does what a reader does, and notes in the page what came of it.
PROBE = """
<script>
const said = document.createElement("output");
said.id = "probe";
document.body.append(said);
const note = (name, value) => { said.append(`${name}=${JSON.stringify(value)}\\n`); };
addEventListener("securitypolicyviolation", (event) => note("violation", event.violatedDirective));
const table = document.querySelector("table.sortable");
const column = (k) => [...table.tBodies[0].rows].map((row) => row.cells[k].textContent);
const heads = [...table.tHead.rows[0].cells];
const recall = heads.findIndex((head) => head.textContent.trim() === "recall");
note("before", column(0));
heads[recall].querySelector("button").click();
note("falling", [column(recall), heads[recall].getAttribute("aria-sort")]);
heads[recall].querySelector("button").click();
note("rising", [column(recall), heads[recall].getAttribute("aria-sort")]);
heads[0].querySelector("button").click();
note("names", [column(0), heads[recall].getAttribute("aria-sort")]);

const tip = document.getElementById("tooltip");
const chart = [...document.querySelectorAll("svg[data-chart]")]
  .find((svg) => svg.getAttribute("aria-label").startsWith("Average precision"));
chart.scrollIntoView();
const box = chart.getBoundingClientRect();
const move = (part) => chart.dispatchEvent(new PointerEvent("pointermove",
  { clientX: box.left + part * box.width, clientY: box.top + box.height / 2 }));
note("hidden", tip.hidden);
move(0.55);
note("middle", tip.innerText);
move(0.99);
note("right", [tip.innerText, tip.hidden]);
chart.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
note("key", tip.innerText);
chart.dispatchEvent(new PointerEvent("pointerleave"));
note("left", tip.hidden);

for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const place = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove",
    { clientX: place.left + place.width / 2, clientY: place.top + place.height / 2 }));
  if (tip.hidden || !tip.innerText.trim()) note("silent", svg.getAttribute("aria-label"));
  svg.dispatchEvent(new PointerEvent("pointerleave"));
}
document.querySelector(".enlarge").click();
note("enlarged", [document.querySelector("dialog").open, document.querySelector("dialog p").textContent]);
note("wide", document.documentElement.scrollWidth > innerWidth);
</script>
"""


@pytest.fixture(scope="module")
def chromium():
    asked = os.environ.get("CHROMIUM")
    found = shutil.which(asked) if asked else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH, and $CHROMIUM is {asked!r}")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    with small_dataset(folder / "images") as name:
        html, _ = build_report(read_run(write_run(folder / "run", name)), Options(use_model=False))
    return html


def browse(chromium: str, file: Path, width: int = 1280) -> tuple[str, str]:
    """The page after its scripts have run, and the messages of the browser."""
    switches = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --enable-logging=stderr --v=0 --window-size={width},900 --dump-dom"
    )
    command = [chromium, *switches.split(), f"--user-data-dir={file.parent / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def messages(log: str) -> list[str]:
    """What the page wrote to the console, errors among them."""
    return [line for line in log.splitlines() if ":CONSOLE" in line]


def test_sections_and_no_message(chromium, page, tmp_path):
    (tmp_path / "report.html").write_text(page)
    html, log = browse(chromium, tmp_path / "report.html")
    assert messages(log) == []
    ids = re.findall(r' id="([\w-]+)"', html)
    assert set(SECTIONS) <= set(ids) and "tooltip" in ids
    assert Page(page).ids == [each for each in ids if each != "tooltip"]


def test_an_error_would_be_seen(chromium, page, tmp_path):
    """That is, the test above can fail."""
    broken = page.replace("</body>", "<script>nothing.of.the.kind()</script><img src='http://127.0.0.1:9/x'></body>")
    (tmp_path / "report.html").write_text(broken)
    found = "\n".join(messages(browse(chromium, tmp_path / "report.html")[1]))
    assert "ReferenceError: nothing is not defined" in found
    assert "violates the following Content Security Policy" in found


@pytest.mark.parametrize("width", [1280, 500])
def test_scripts(chromium, page, tmp_path, width):
    (tmp_path / "report.html").write_text(page.replace("</body>", PROBE + "</body>"))
    html, log = browse(chromium, tmp_path / "report.html", width)
    assert messages(log) == []
    text = Page(re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)).sections[""]
    said = dict(line.split("=", 1) for line in re.findall(r"^\w+=.*$", text, re.MULTILINE))
    assert said["before"] == f'["{EVIL}","{PLAIN}"]'.replace('"class"', '\\"class\\"')
    assert said["falling"] == '[["75.0","25.0"],"descending"]'
    assert said["rising"] == '[["25.0","75.0"],"ascending"]'
    assert said["names"].endswith('"none"]')
    assert said["hidden"] == "true" and said["left"] == "true"
    assert said["middle"].startswith('"iteration 100') and "AP" in said["middle"] and "20" in said["middle"]
    assert said["right"].startswith('["iteration 200') and "41.25" in said["right"] and said["right"].endswith("false]")
    assert said["key"].startswith('"iteration 100')
    assert "silent" not in said and "violation" not in said
    assert said["enlarged"] == '[true,"im<i>1.png: 2 correct, 0 wrong, 0 missed"]'
    assert said["wide"] == "false"
