"""The report in a real browser: Chromium without a window, where one is found."""

import os
import re
import shutil
import subprocess

import pytest
from own_processes import HANG

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


@pytest.fixture(scope="module")
def browser():
    """Path of a Chromium; CHROMIUM names one that is not on PATH."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser found: put one of {', '.join(NAMES)} on PATH, or name it in CHROMIUM")
    return path


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a file without any network; the document as it is then, and the messages of its console."""

    def open_page(path):
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{path}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, re.findall(r"CONSOLE[^\n]*", done.stderr)

    return open_page


def test_console_errors_are_seen(opened, tmp_path):
    """Of what the next test says that there is none of."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><link rel="icon" href="data:,"><body><script>undefined_function()</script>'
    )
    _, console = opened(page)
    assert any("undefined_function" in message for message in console)


def test_report_opens_without_console_errors(opened, report):
    document, console = opened(report)
    assert console == []
    sections = re.findall(r'<section id="([^"]+)">(.*?)</section>', document, re.DOTALL)
    assert len(sections) == 11
    for name, body in sections:
        assert re.search(r"<(svg|img|pre)\b", body), f"section {name} is empty"
    assert document.rstrip().endswith("</html>") and "Made by fastreid_sskd" in document
