"""Every command of the README and of docs/ names files, flags and keys that exist."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
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
# Once each, in the order of the pages, so that a command finds what an earlier one has written.
FOUND = dict.fromkeys(
    re.split("  +#", command)[0].strip()
    for page in PAGES
    for command in COMMAND.findall(page.read_text().replace("\\\n", " "))
)
COMMANDS = sorted(FOUND)
# Commands that are only parsed, and why.
NOT_RUN = {
    r"configs/(?!emoji|plug_in)\w+/": "data and weights to download",
    r"datasets/prepare_(?!emoji)": "data to download",
    r"--num-gpus [2-9]|--device cuda": "GPUs",
    r"web_demo\.py": "serves until it is stopped",
    r"quickstart\.py|run_(ablations|segmentation)\.py": "has a test of its own: many trainings",
    r"train_emoji_clip\.py": "has a test of its own: trains for minutes",
    r"save_pretrained\.py|coco_2017|EVA02|--dataset (coco|lvis)": "data and weights to download",
    r"/path/to|/data/farm|film\.mp4|\.\.\.|<": "names the reader's own files",
    r"\$\{": "a line of a shell script",
    r"WANDB_PROJECT": "has a test of its own, where wandb is",
}
# What shortens a command; later values go before earlier ones.
SHORT = {
    "tools/train_net.py": "SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0",
    "tools/plain_train_net.py": "SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0",
    "tools/distill_train_net.py": "SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0",
    "tools/lazyconfig_train_net.py": "train.max_iter=2 dataloader.train.num_workers=0",
    "tools/benchmark.py": "--model ViT-Ti-8-emoji --size 64 --scale 0.01 --repeats 1",
    "tools/compare_distillers.py": "--seeds 1 --iterations 1 --detector-iterations 1",
    "datasets/prepare_emoji.py": "--train 24 --val 12",
    "tools/build_concept_pool.py": "--min-count 1",
    "tools/train_emoji_vfm.py": "--steps 2 --batch-size 4",
}
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def is_run(command: str) -> bool:
    return not any(re.search(pattern, command) for pattern in NOT_RUN)


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


@pytest.fixture(scope="module")
def workplace(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository, with a small data set and a short quickstart."""
    folder = tmp_path_factory.mktemp("workplace")
    for place in ROOT.iterdir():
        if place.name not in ("output", "datasets", "docs", ".git"):
            (folder / place.name).symlink_to(place)
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "datasets" / "emoji").mkdir(parents=True)
    # Scenes that were made in the checkout are not those of the short quickstart.
    made = (ROOT / "datasets" / "emoji" / ".gitignore").read_text().replace("/", "").split()
    for part in ("datasets", "datasets/emoji"):
        for place in (ROOT / part).iterdir():
            is_made = any(place.match(pattern) for pattern in made)
            if not is_made and not (folder / part / place.name).exists():
                (folder / part / place.name).symlink_to(place)
    short = "--train 24 --val 12 --rpn-iterations 30 --distill-iterations 2 --detector-iterations 2"
    done = run_command(python, f"tools/quickstart.py {short}", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    # The README distils on patches "or" on proposals, as the quickstart does, and reads the latter.
    (folder / "output" / "emoji").mkdir()
    page = (ROOT / "docs" / "labelling.md").read_text()
    ontology = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    (folder / "ontology.json").write_text(ontology[1])
    student = folder / "output" / "quickstart" / "clipself"
    (folder / "output" / "emoji" / "clipself_proposals").symlink_to(student)
    return folder


def run_command(python: str, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DETECTRON2_DATASETS": "datasets", "PYTHONPATH": str(ROOT)}
    words = [python, "-W", "ignore", *shlex.split(command)]
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_what_is_not_run_is_there() -> None:
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command) for command in FOUND), pattern


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in FOUND if is_run(command)])
def test_a_command_runs(python: str, workplace: Path, command: str) -> None:
    """With few iterations, in the order of the pages: some read what earlier ones have written."""
    if "onnx" in command:
        pytest.importorskip("onnx", reason="an extra")
    done = run_command(python, f"{command} {SHORT.get(command.split()[0], '')}", workplace)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_notebook_block_runs() -> None:
    block = next(block for block in PYTHON_BLOCKS if "roi_embeddings" in block)
    scope = {"images": torch.zeros(1, 3, 64, 96), "boxes": [torch.tensor([[0.0, 0.0, 32.0, 32.0]])]}
    exec(block, scope)
    assert scope["scores"].shape == (1, 2)
