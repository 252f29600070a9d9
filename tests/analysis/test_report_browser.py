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

const plots = [...document.querySelectorAll(".plot")];
note("before_print", plots.every((plot) => plot.querySelector(".main-svg")));
dispatchEvent(new Event("beforeprint")); // draws all charts
const texts = (plot, kind) => [...plot.querySelectorAll(`${kind} text`)].map((text) => text.textContent).join(" | ");
for (const plot of plots) {
  const title = plot.getAttribute("aria-label");
  if (!plot.querySelector(".main-svg")) note("empty", title);
  const precision = title.startsWith("Average precision");
  Plotly.Fx.hover(plot, precision ? { xval: 100 } : [{ curveNumber: 0, pointNumber: 0 }]);
  if (!texts(plot, ".hoverlayer")) note("silent", title);
  if (precision) note("hover", texts(plot, ".hoverlayer"));
  if (title.startsWith("Precision over recall of each class")) note("legend", texts(plot, ".legend"));
}
note("links", document.querySelectorAll(".plot a[*|href]").length);
const axis = document.querySelector(".plot .xtick text");
note("axis", getComputedStyle(axis).fill);
document.querySelector(".enlarge").click();
note("enlarged", [document.querySelector("dialog").open, document.querySelector("dialog p").textContent]);
note("wide", document.documentElement.scrollWidth > innerWidth);
Plotly.toImage(plots[0], { format: "png", width: 300, height: 200 })
  .then((url) => note("image", url.slice(0, 22)), (error) => note("image", String(error)));
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


def browse(chromium: str, file: Path, width: int = 1280, dark: bool = False) -> tuple[str, str]:
    """The page after its scripts have run, and the messages of the browser."""
    switches = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --enable-logging=stderr --v=0 --window-size={width},900 "
        f"--virtual-time-budget=5000 --dump-dom --blink-settings=preferredColorScheme={0 if dark else 1}"
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
    assert set(SECTIONS) <= set(ids)
    assert 'class="main-svg"' in html  # a chart near the top is drawn at once


def test_an_error_would_be_seen(chromium, page, tmp_path):
    """That is, the test above can fail."""
    broken = page.replace("</body>", "<script>nothing.of.the.kind()</script><img src='http://127.0.0.1:9/x'></body>")
    (tmp_path / "report.html").write_text(broken)
    found = "\n".join(messages(browse(chromium, tmp_path / "report.html")[1]))
    assert "ReferenceError: nothing is not defined" in found
    assert "violates the following Content Security Policy" in found


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_scripts(chromium, page, tmp_path, width, dark):
    (tmp_path / "report.html").write_text(page.replace("</body>", PROBE + "</body>"))
    html, log = browse(chromium, tmp_path / "report.html", width, dark)
    assert messages(log) == []
    text = Page(re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)).sections[""]
    said = dict(line.split("=", 1) for line in re.findall(r"^\w+=.*$", text, re.MULTILINE))
    assert said["before"] == f'["{EVIL}","{PLAIN}"]'.replace('"class"', '\\"class\\"')
    assert said["falling"] == '[["75.0","25.0"],"descending"]'
    assert said["rising"] == '[["25.0","75.0"],"ascending"]'
    assert said["names"].endswith('"none"]')
    assert "empty" not in said and "silent" not in said and "violation" not in said
    assert said["before_print"] == "false"  # charts far below are drawn when they come near
    assert "AP: 20" in said["hover"] and "AP50: 60" in said["hover"] and "100" in said["hover"]
    assert EVIL.replace('"', '\\"') in said["legend"] and f"{PLAIN}: AP50" in said["legend"]
    assert said["links"] == "0"
    assert said["axis"] == ('"rgb(201, 200, 191)"' if dark else '"rgb(78, 77, 73)"')  # --second of the style sheet
    assert said["image"] == '"data:image/png;base64,"'
    assert said["enlarged"] == '[true,"im<i>1.png: 2 correct, 0 wrong, 0 missed"]'
    assert said["wide"] == "false"
