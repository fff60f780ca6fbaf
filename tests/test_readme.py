"""Every command of the README and of docs/ names files, flags and keys that exist."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from clipself_d2.engine.cli import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "datasets" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:python|torchrun .*?|slurm_train.sh) ((?:tools|datasets)/\w+\.py[^`\n]*)")
COMMANDS = sorted({command for page in PAGES for command in COMMAND.findall(page.read_text())})
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def has_key(cfg: CfgNode, key: str) -> bool:
    for part in key.split("."):
        if part not in cfg:
            return False
        cfg = cfg[part]
    return True


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 8
    assert "bash tools/quickstart.sh" in README
    assert "bash tools/test.sh" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_files_and_keys_of_a_command_exist(command: str) -> None:
    words = command.split()
    assert (ROOT / words[0]).is_file()
    if "--config-file" in words:
        config = words[words.index("--config-file") + 1]
        assert (ROOT / config).is_file()
        if config.endswith(".py"):
            return
        cfg = load_config(str(ROOT / config), [])
        keys = re.findall(r"\b([A-Z][A-Z_0-9]+(?:\.[A-Z_0-9]+)+) ", command)
        assert all(has_key(cfg, key) for key in keys), keys


@pytest.mark.parametrize("script", sorted({command.split()[0] for command in COMMANDS}))
def test_flags_of_every_script_are_in_its_help(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    used = {
        flag
        for command in COMMANDS
        if command.startswith(script)
        for flag in re.findall(r"(?<!\S)--[\w-]+", command)
    }
    # Flags of sub-commands are in the help of those.
    if "{" not in shown.split("options:")[0]:
        assert all(flag in shown for flag in used), used
    assert "xample" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_notebook_block_runs() -> None:
    block = next(block for block in PYTHON_BLOCKS if "roi_embeddings" in block)
    scope = {"images": torch.zeros(1, 3, 64, 96), "boxes": [torch.tensor([[0.0, 0.0, 32.0, 32.0]])]}
    exec(block, scope)
    assert scope["scores"].shape == (1, 2)
