"""The page opens in a browser without a network, and names smuggle nothing in."""

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import made_up
import pytest

from meshnet.crossval import page, report


class Browser:
    """Headless Chromium through chromedriver's HTTP interface."""

    FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             "--window-size=1200,900")

    def __init__(self, profile: Path):
        driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
        if not driver or not chromium:
            pytest.skip("no chromium and chromedriver here to open the page with")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        self.base = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                self.call("/status")
                break
            except OSError:
                time.sleep(0.1)
        options = {"args": [*self.FLAGS, f"--user-data-dir={profile}"], "binary": chromium}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
        self.base += "/session/" + self.call("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def call(self, path: str, body: dict | None = None):
        request = urllib.request.Request(self.base + path, None if body is None else json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def ask(self, script: str):
        return self.call("/execute/sync", {"script": f"return {script}", "args": []})

    def requests(self) -> list[str]:
        events = [json.loads(entry["message"])["message"] for entry in self.call("/se/log", {"type": "performance"})]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        request = urllib.request.Request(self.base, method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()
        self.process.terminate()
        self.process.wait(10)


def test_the_page_opens_in_a_real_browser_without_a_network(written, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "page.html"  # nothing beside it to lean on
    shutil.copyfile(written / "report/report.html", moved)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.call("/url", {"url": moved.as_uri()})
        assert browser.ask("document.title") == "Cross-validation of lesion segmentation"
        cells = browser.ask("[...document.querySelector('table').rows].map(r => [...r.cells].map(c => c.textContent))")
        assert cells[0][:4] == ["Model", "Parameters", "Lesion Dice ↑", "DICE ↑"]
        assert cells[1][:3] == ["meshnet26", "147,474", "0.655 (0.040)"]
        assert cells[2][:3] == ["meshnet5", "5,682", "0.555 (0.040)***"]
        assert browser.ask("document.querySelectorAll('table').length") == 5
        pictures = browser.ask("[...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 300])")
        assert [alt for alt, _ in pictures] == ["Parameters against macro Dice", "Distribution of scores by subject",
                                                "Lesion volume against Dice", "Bland–Altman plot of volumes"]
        assert all(loaded for _, loaded in pictures)
        assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth")
        asked = browser.requests()
        assert moved.as_uri() in asked
        # The browser's own start page is of the chrome: scheme, and inside it.
        assert [url for url in asked if not url.startswith(("file:", "data:", "chrome:", "chrome-untrusted:"))] == []
        assert browser.call("/se/log", {"type": "browser"}) == []  # no blocked picture, no other complaint
    finally:
        browser.close()


def test_names_cannot_smuggle_anything_into_the_page():
    assert "<script" not in report.page.picture(Path(made_up.__file__), "<script>", '"><script>')
    assert "<script" not in report.page.whole("<script>", "<script>", [("<script>", "")])


def test_numbers_in_words():
    assert [page.p_value(p) for p in (math.nan, 0.0009, 0.001, 0.0404, 1)] == [
        "–", "&lt; 0.001", "0.001", "0.040", "1.000"]
    assert [page.number(value, ".2f") for value in (math.nan, -0.126, 3)] == ["–", "−0.13", "3.00"]
    assert [page.interval(*ends) for ends in ((math.nan, math.nan), (-0.71, 0.8))] == ["–", "−0.710 to 0.800"]
