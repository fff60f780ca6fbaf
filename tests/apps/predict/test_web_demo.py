"""The page in a headless Chromium, and what is said where it cannot be served."""

import importlib
import json
import os
import re
import shutil
import socket
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipself_d2.apps.predict import web_demo
from clipself_d2.apps.predict.page_session import Models
from clipself_d2.apps.predict.web_demo import Page, load_gradio, serve

PATIENCE = 120_000


def test_without_gradio_there_is_one_clear_sentence(emoji_cfg, monkeypatch) -> None:
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"the web page needs gradio.*\.\[demo\]"):
        serve(emoji_cfg("cris"), host="127.0.0.1", port=7860)


def test_a_gradio_that_lacks_a_part_of_its_own_is_not_called_missing(monkeypatch) -> None:
    def broken(name):
        raise ModuleNotFoundError("No module named 'httpx'", name="httpx")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="httpx"):
        load_gradio()


def test_a_taken_port_is_named(emoji_cfg, monkeypatch) -> None:
    def taken(**_):
        raise OSError("port is busy")

    page = types.SimpleNamespace(blocks=types.SimpleNamespace(launch=taken))
    monkeypatch.setattr(web_demo, "load_gradio", lambda: None)
    monkeypatch.setattr(web_demo, "Models", lambda *_: None)
    monkeypatch.setattr(web_demo, "Page", lambda *_: page)
    with pytest.raises(ValueError, match=r"cannot listen at h:80 \(port is busy\)"):
        serve(emoji_cfg("cris"), host="h", port=80)


@pytest.fixture
def address(detector_cfg, weights: Path, tmp_path: Path, monkeypatch) -> Iterator[str]:
    """A page of a detector of random weights, served in a thread."""
    gradio = pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    cfg = detector_cfg()
    cfg.MODEL.WEIGHTS = str(weights)
    page = Page(gradio, Models(cfg), 0.05, tmp_path / "downloads")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page.blocks.launch(
        server_name="127.0.0.1",
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        allowed_paths=[str(tmp_path)],
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        page.blocks.close()


@pytest.mark.slow
def test_a_visitor_types_words_moves_the_slider_and_reads_the_answer(
    address: str, pictures: list[Path], tmp_path: Path
) -> None:
    browsers = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium; install one, or name it in CHROMIUM")
    with browsers.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(address, wait_until="domcontentloaded")
        found = page.locator("#found textarea")

        # What lacks is said on the page.
        page.click("#look")
        page.get_by_text("there is no picture; upload one").wait_for()

        page.set_input_files("#pictures input[type=file]", [str(pictures[0]), str(pictures[1])])
        page.locator("#pictures img").nth(1).wait_for()
        words = page.locator("#words input")
        for word in ("police car;squad car", "wombat"):
            words.fill(word)
            words.press("Enter")
        page.get_by_text("police car;squad car", exact=True).wait_for()
        page.click("#look")
        page.wait_for_function("document.querySelector('#found textarea').value.includes('%')")
        first = found.input_value()
        assert "police car" in first
        # "squad car" is unseen too.
        page.get_by_text(re.compile("never read the words .*wombat")).wait_for()

        # The slider draws anew.
        slider = page.locator("#threshold input[type=number]")
        slider.fill("1")
        slider.press("Enter")
        page.wait_for_function(
            "document.querySelector('#found textarea').value.includes('nothing found')"
        )
        slider.fill("0")
        slider.press("Enter")
        page.wait_for_function("document.querySelector('#found textarea').value.includes('%')")

        page.get_by_role("tab", name="Heat map").click()
        page.get_by_text("police car: from").wait_for()
        with page.expect_download() as waiting:
            page.get_by_text("Download as COCO json").click()
        waiting.value.save_as(tmp_path / "found.json")
        content = json.loads((tmp_path / "found.json").read_text())
        assert [row["name"] for row in content["categories"]] == ["police car", "wombat"]
        assert [row["file_name"] for row in content["images"]] == [p.name for p in pictures[:2]]
        assert content["annotations"]

        # A phone shows it without a bar to the right.
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
