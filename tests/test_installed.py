"""What pip installs works without the repository, and the first answers come without torch."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from clipself_d2.apps.benchmark import run as benchmark
from clipself_d2.apps.emoji.compare_distillers import METHODS
from clipself_d2.apps.emoji.prepare import EmojiOptions
from clipself_d2.apps.emoji.quickstart import QuickstartOptions
from clipself_d2.apps.emoji.train_clip import EmojiClipOptions
from clipself_d2.apps.export.run import FORMATS
from clipself_d2.apps.files.text_embeddings import BATCH_SIZE
from clipself_d2.apps.label.formats import FORMS
from clipself_d2.clip.precision import PRECISIONS
from clipself_d2.clip.towers.compiling import COMPILE_MODES
from clipself_d2.clip.weights.convert import LAYOUTS
from clipself_d2.data.datasets.semantic import SETS
from clipself_d2.segmentation.panoptic import POOLINGS
from clipself_d2.vocabulary.noun_chunks import PARSERS
from clipself_d2_cli.main import FOLDERS, find_commands, main

ROOT = Path(__file__).resolve().parent.parent
# Detectron2's own loop, shown as its users know it: it parses by Detectron2.
HEAVY = {"plain-train-net"}
HELP = """
import contextlib, io, json, sys
from clipself_d2_cli.main import main
heavy = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["clipself-d2", command, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        main()
    assert "usage: clipself-d2 " + command in said.getvalue(), command
    heavy += [command for name in ("torch", "detectron2", "clipself_d2") if name in sys.modules]
print(json.dumps(heavy))
"""


def run(code: str, *arguments: str, place: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(place)}
    words = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(
        words, env=environment, cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_no_command_needs_torch_to_answer_help() -> None:
    commands = sorted(set(find_commands()) - HEAVY)
    assert {"train", "distill", "predict", "serve", "benchmark", "prepare-emoji"} <= set(commands)
    assert json.loads(run(HELP, json.dumps(commands))) == []


def constants(script: str) -> dict[str, object]:
    """Names in capitals that a script sets to a literal."""
    found = {}
    for node in ast.parse((ROOT / script).read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def test_choices_and_defaults_are_those_of_the_code() -> None:
    """Parsers repeat them, since the code that has them imports torch."""
    analysis, speed = (
        constants(f"tools/{n}.py") for n in ("analyze_region_alignment", "benchmark")
    )
    assert analysis["PRECISIONS"] == speed["PRECISIONS"] == PRECISIONS
    assert speed["COMPILE_MODES"] == COMPILE_MODES
    assert constants("tools/compare_distillers.py")["METHODS"] == tuple(METHODS)
    assert constants("tools/export.py")["FORMATS"] == FORMATS
    assert constants("tools/label.py")["FORMS"] == FORMS
    assert speed["PARTS"] == tuple(benchmark.PARTS)
    assert constants("tools/classify_masks.py")["POOLINGS"] == POOLINGS
    assert constants("tools/run_segmentation.py")["POOLINGS"] == POOLINGS
    assert constants("tools/convert_checkpoint.py")["LAYOUTS"] == LAYOUTS
    assert constants("tools/build_concept_pool.py")["PARSERS"] == PARSERS
    assert constants("datasets/prepare_semseg.py")["SETS"] == tuple(SETS)
    assert EmojiClipOptions(**constants("tools/train_emoji_clip.py")["DEFAULTS"]) == (
        EmojiClipOptions()
    )
    quick = {
        k.replace("-", "_"): v for k, v in constants("tools/quickstart.py")["DEFAULTS"].items()
    }
    places = (Path("a"), Path("b"))
    assert QuickstartOptions(*places, **quick) == QuickstartOptions(*places)
    assert EmojiOptions() == EmojiOptions(2000, 300, 0, False)
    assert BATCH_SIZE == 256


def test_a_word_that_is_no_command_is_answered_with_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["clipself-d2", "trian"])
    assert main() == 2
    said = capsys.readouterr().err
    assert "'trian' is no command" in said
    assert "\n  train\n" in said
    assert "\n  doctor\n" in said


def test_every_script_is_a_command_with_a_main() -> None:
    paths = find_commands().values()
    assert len(paths) == sum(len(list(folder.glob("*.py"))) for folder in FOLDERS)
    for path in paths:
        names = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
        assert "main" in names, path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked; built from a copy without network."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    left_out = shutil.ignore_patterns("__pycache__", "train", "val", "*_train", "*_val")
    for name in ("clipself_d2", "clipself_d2_cli", "configs", "tools", "datasets"):
        shutil.copytree(ROOT / name, source / name, ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(wheels)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, cwd=source
    )
    unpacked = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(unpacked)
    return unpacked


@pytest.mark.slow
def test_the_wheel_has_recipes_weights_sprites_and_commands(site: Path) -> None:
    recipes = site / "clipself_d2" / "model_zoo" / "configs"
    for kind in ("*.yaml", "*.py"):
        shipped = {path.relative_to(recipes) for path in recipes.rglob(kind)}
        assert shipped == {p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob(kind)}
    assert (site / "clipself_d2/clip/pretrained/ViT-Ti-8-emoji.safetensors").is_file()
    assert (site / "clipself_d2/data/datasets/emoji/noto.webp").is_file()
    entry = next(site.glob("*.dist-info")) / "entry_points.txt"
    assert "clipself-d2 = clipself_d2_cli.main:main" in entry.read_text()


@pytest.mark.slow
def test_the_wheel_works_far_from_the_repository(site: Path) -> None:
    found = run(
        "import clipself_d2, sys; from clipself_d2.model_zoo import get_config, list_recipes\n"
        "from clipself_d2.data.datasets.emoji_world import SPRITE_DIR\n"
        "from clipself_d2_cli.main import find_commands\n"
        "assert get_config('emoji/fvit_untouched.yaml').MODEL.CLIP.NAME == 'ViT-Ti-8-emoji'\n"
        "model_zoo = clipself_d2.model_zoo\n"
        "model_zoo.get('emoji/fvit_clipself.yaml', ['MODEL.DEVICE', 'cpu'], trained=True)\n"
        "from clipself_d2.engine.cli import load_config\n"
        "load_config('configs/emoji/cris.yaml', [])\n"
        "print(clipself_d2.__file__, SPRITE_DIR, find_commands()['train'], len(list_recipes()))",
        place=site,
    )
    *places, recipes = found.split()
    assert all(place.startswith(str(site)) for place in places), places
    assert int(recipes) > 150
    assert (
        json.loads(run(HELP, json.dumps(["train", "predict", "prepare-emoji"]), place=site)) == []
    )
