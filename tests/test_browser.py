"""The interactive notebooks in a real browser: they open, a control moves, picture and number change, nothing
complains or asks another host."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

from helpers import layout

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None,
        reason="the notebooks in a browser: no Chromium here; on Debian: apt install chromium",
    ),
]

# As root Chromium wants no sandbox, in a container little shared memory; SwiftShader draws WebGL without a
# graphics card.
_OPTIONS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=_OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def server(tmp_path):
    """Start a server on a free port; give its address when it answers, and show its log if the test fails."""
    started = []

    def start(*command):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        log = open(tmp_path / "server.log", "w")
        environment = os.environ | {
            "OMP_NUM_THREADS": "2",
            "JUPYTER_PATH": str(layout.ROOT / "share" / "jupyter"),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={port}"], stdout=log, stderr=log, env=environment
        )
        started.append((process, log))
        for _ in range(120):
            # Not by asking for a page: for each one that is asked for, Voila runs the whole notebook.
            try:
                socket.create_connection(("localhost", port), timeout=1).close()
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
            else:
                return f"http://localhost:{port}"
        raise TimeoutError((tmp_path / "server.log").read_text())

    yield start
    # Read before the server is told to stop: a kernel cut off in the middle of a message complains, rightly.
    text = (tmp_path / "server.log").read_text() if started else ""
    for process, log in started:
        process.terminate()
        process.wait(30)
        log.close()
    assert "Traceback" not in text


@pytest.fixture
def page(browser):
    """A page on a projector of 1280 x 720; the browser's complaints are an error of the test."""
    page, complaints, abroad = browser.new_page(viewport={"width": 1280, "height": 720}), [], []
    page.set_default_timeout(240_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            abroad.append(request.url) if urlsplit(request.url).hostname not in (None, "localhost") else None
        ),
    )
    yield page
    page.close()
    # There is no network in the room: neither for the page, nor for what it draws.
    assert not abroad
    assert not complaints


def voila(notebook):
    template = "--template=offline"  # as `make app` has it
    assert (
        f"JUPYTER_PATH=$(CURDIR)/share/jupyter $(BIN)/voila {template} "
        in (layout.ROOT / "Makefile").read_text()
    )
    return (
        "voila",
        str(layout.NOTEBOOKS / f"{notebook}.ipynb"),
        template,
        "--no-browser",
        "--show_tracebacks=True",
    )


def waits(page, locator, before, attribute="src"):
    """Wait until an element differs from what it was; return what it is."""
    for _ in range(600):
        now = locator.get_attribute(attribute) if attribute != "text" else locator.inner_text()
        if now != before:
            return now
        page.wait_for_timeout(100)
    raise AssertionError(f"nothing changed: {before!r:.80}")


def slide(page, label, steps):
    """Move the slider with that label by some steps, with the keyboard."""
    handle = page.locator(".widget-hslider", has=page.get_by_text(label, exact=True)).locator(".noUi-handle")
    handle.focus()
    for _ in range(abs(steps)):
        handle.press("ArrowRight" if steps > 0 else "ArrowLeft")


def test_the_slice_profiles_follow_a_slider(server, page):
    page.goto(server(*voila("01_slice_profiles")))
    panel = page.locator(".jupyter-widgets img")
    panel.first.wait_for()
    numbers = page.locator(".rm-big").first
    picture, text = panel.first.get_attribute("src"), numbers.inner_text()
    assert "FWHM of the profile" in text
    slide(page, "gap (mm)", -3)
    waits(page, panel.first, picture)
    assert "slices every 6.5 mm" in text
    text = waits(page, numbers, text, "text")
    page.wait_for_timeout(1500)
    assert re.search(r"slices every 6\.\d+ mm", numbers.inner_text()) and "6.5 mm" not in numbers.inner_text()
    assert page.locator("text=Traceback").count() == 0


def test_the_lab_meeting_runs(server, page):
    page.goto(server(*voila("07_lab_meeting")))
    picture, numbers = page.locator(".rm-app img").first, page.locator(".rm-app .rm-big").first
    picture.wait_for()
    before, text = picture.get_attribute("src"), numbers.inner_text()
    assert "5||1.5 mm: a slice every 6.5 mm" in text
    # Everything fits on the projector, and the text of the notebook is not in the way.
    box = page.locator(".rm-app").bounding_box()
    assert box["y"] < 60 and box["y"] + box["height"] < 720 and box["x"] + box["width"] <= 1280
    slide(page, "thickness", -5)
    waits(page, picture, before)
    waits(page, numbers, text, "text")
    page.get_by_role("tab", name="Guess first").click()
    page.get_by_role("button", name="A is better").click()
    page.get_by_text(re.compile(r"the room was right in")).wait_for()
    page.get_by_role("button", name="next question").click()
    page.get_by_text(re.compile(r"Question 2\.")).wait_for()
    page.get_by_role("tab", name="Table 1").click()
    page.locator(".rm-app select:visible").select_option("5")
    page.get_by_text(re.compile(r"FLAIR\s+3D")).wait_for()
    assert page.locator("text=Traceback").count() == 0


def test_a_volume_turns_in_three_dimensions(server, page):
    page.goto(server(*voila("02_degradation")))
    canvas = page.locator("canvas").first
    canvas.wait_for()
    page.wait_for_timeout(4000)  # the volume is drawn after the canvas is there
    canvas.scroll_into_view_if_needed()
    seen = canvas.screenshot()
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 3)
    page.wait_for_timeout(1000)
    assert canvas.screenshot() != seen
    assert page.locator("text=Traceback").count() == 0


def test_jupyterlab_runs_the_slice_profiles(server, page):
    lab = (
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.token=",
        f"--ServerApp.root_dir={layout.ROOT}",
    )
    page.goto(server(*lab) + "/lab/tree/notebooks/01_slice_profiles.ipynb?reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(state="attached")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    panel = page.locator(".jp-OutputArea .jupyter-widgets img").first
    panel.wait_for(state="attached")
    panel.scroll_into_view_if_needed()
    before = panel.get_attribute("src")
    slide(page, "thickness (mm)", 5)
    waits(page, panel, before)
    # What was run is not saved.
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
