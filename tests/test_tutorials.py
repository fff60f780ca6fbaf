"""Every block of the tutorials and every notebook runs; the site builds without warnings."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ("own_data", "plug_in", "distil", "words")
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "DETECTRON2_DATASETS": "datasets", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] or done.stdout[-2000:]


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path) -> None:
    """One test, since later pages use what earlier ones have written."""
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "prepare_emoji.py").symlink_to(ROOT / "datasets/prepare_emoji.py")
    blocks = [
        block
        for name in TUTORIALS
        for block in BLOCK.findall((ROOT / "docs" / "tutorials" / f"{name}.md").read_text())
    ]
    assert len(blocks) >= 10
    for language, text in blocks:
        if language == "python":
            run([sys.executable, "-W", "ignore", "-c", text], tmp_path)
            continue
        for line in text.strip().splitlines():
            run(
                ["bash", "-c", line.replace("python ", f"{sys.executable} -W ignore ", 1)], tmp_path
            )
    assert (tmp_path / "output" / "labelled" / "detections.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["words", "distil"])
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    content = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text())
    cells = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]
    assert len(cells) >= 2
    # No cell has a line that Python alone cannot run, so that no kernel is needed.
    plain = ["import matplotlib", 'matplotlib.use("Agg")', *cells]
    run([sys.executable, "-W", "ignore", "-c", "\n".join(plain)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["words", "distil"])
def test_a_notebook_runs_in_jupyter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient, nbformat = (pytest.importorskip(module) for module in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    # An error in a cell is raised here.
    nbclient.NotebookClient(book, timeout=600, resources=place).execute()
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")


def test_the_tutorials_are_the_pages_of_their_folder() -> None:
    assert {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")} == set(TUTORIALS)


def test_every_page_is_in_the_site() -> None:
    def pages(nav: object) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        return [
            page
            for part in (nav.values() if isinstance(nav, dict) else nav)
            for page in pages(part)
        ]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == there
    assert len(listed) == len(set(listed))


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "-f"]
        + [str(ROOT / "mkdocs.yml"), "-d", str(tmp_path / "site"), "-q"],
        ROOT,
    )
    assert "load_clip" in (tmp_path / "site" / "api" / "index.html").read_text()
