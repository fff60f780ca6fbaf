import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from clipself_d2.config import add_clipself_config
from clipself_d2.engine.cli import load_config

ROOT = Path(__file__).parents[1]
YAML_FILES = sorted((ROOT / "configs").rglob("*.yaml"))


def flatten(cfg: CfgNode, prefix: str = "") -> dict[str, object]:
    keys: dict[str, object] = {}
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            keys.update(flatten(value, f"{prefix}{name}."))
        else:
            keys[prefix + name] = value
    return keys


def detectron2_defaults() -> CfgNode:
    """Detectron2's config as it was before this package was imported."""
    spec = importlib.util.find_spec("detectron2.config.defaults")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._C


def own_keys() -> list[str]:
    cfg = detectron2_defaults()
    before = set(flatten(cfg))
    add_clipself_config(cfg)
    return sorted(set(flatten(cfg)) - before)


def test_no_default_of_detectron2_is_changed() -> None:
    cfg = detectron2_defaults()
    before = flatten(cfg)
    add_clipself_config(cfg)
    after = flatten(cfg)
    assert {key: after[key] for key in before} == before


def test_importing_the_package_gives_detectron2s_tools_the_keys() -> None:
    pristine = detectron2_defaults()
    add_clipself_config(pristine)
    assert flatten(get_cfg()) == flatten(pristine)


def test_adding_the_keys_again_keeps_what_was_set() -> None:
    cfg = get_cfg()
    cfg.MODEL.CLIP.NAME = "EVA02-B-16"
    add_clipself_config(cfg)
    assert cfg.MODEL.CLIP.NAME == "EVA02-B-16"


def test_no_part_of_the_project_has_more_than_20_keys() -> None:
    parts = Counter(key.rsplit(".", 1)[0] for key in own_keys())
    assert max(parts.values()) <= 20, parts
    assert len(own_keys()) <= 100


def test_every_key_is_read_outside_the_defaults() -> None:
    files = [path for path in (ROOT / "clipself_d2").rglob("*.py") if path.name != "config.py"]
    read = set(re.findall(r"\.([A-Z]\w*)", "".join(path.read_text() for path in files)))
    unread = [key for key in own_keys() if key.rsplit(".", 1)[-1] not in read]
    assert not unread, f"nothing reads {unread}"


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_merges(path: Path) -> None:
    cfg = load_config(str(path), [])
    assert cfg.VERSION == 2


@pytest.mark.parametrize(
    "name", ["rpn", "fvit_untouched", "clipself_patches", "clipself_proposals"]
)
def test_every_emoji_recipe_builds_its_model(name: str, emoji_cfg) -> None:
    model = build_model(emoji_cfg(name))
    assert type(model).__name__ == emoji_cfg(name).MODEL.META_ARCHITECTURE
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_key_names_itself_and_its_source() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.CLIP\.NAMES.*command line"):
        load_config("", ["MODEL.CLIP.NAMES", "x"])


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("MODEL:\n  CLIPS: 1\n")
    with pytest.raises(ValueError, match=r"CLIPS.*bad\.yaml"):
        load_config(str(file), [])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml", [])


@pytest.mark.parametrize("folder", ["emoji", "plug_in"])
def test_short_recipes_keep_checkpoints_on_their_way(folder: str) -> None:
    files = [p for p in sorted((ROOT / "configs" / folder).glob("*.yaml")) if p.stem[0] != "B"]
    assert len(files) > 9
    for file in files:
        solver = load_config(str(file), []).SOLVER
        assert 2 * solver.CHECKPOINT_PERIOD <= solver.MAX_ITER, file.name
