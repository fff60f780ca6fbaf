from dataclasses import replace
from pathlib import Path

import pytest

from clipself_d2.apps.emoji import compare_distillers, quickstart
from clipself_d2.apps.emoji.compare_distillers import (
    METHODS,
    REPOSITORY,
    CompareOptions,
    dense_miou,
    format_page,
    lines,
    plan,
    run_comparison,
)
from clipself_d2.distillation.terms import read_terms
from clipself_d2.engine.cli import load_config
from clipself_d2.parts.json_file import write_json


@pytest.fixture
def options(tmp_path: Path) -> CompareOptions:
    return CompareOptions(tmp_path / "out", tmp_path / "data", tmp_path / "page.md", seeds=2)


def test_every_method_has_the_same_budget_and_a_recipe(options) -> None:
    for method, recipe in METHODS.items():
        (stage,) = plan(options, method, 1)
        pairs = stage.command
        assert pairs[pairs.index("SOLVER.MAX_ITER") + 1] == "750"
        assert (REPOSITORY / "configs" / "emoji" / f"{recipe}.yaml").is_file()
        # Regions of a grid, so that no method sees other boxes.
        cfg = load_config(str(REPOSITORY / "configs" / "emoji" / f"{recipe}.yaml"), [])
        assert cfg.INPUT.REGIONS.SOURCE == "grid"


def test_densevlm_learns_of_the_clipself_of_its_seed(options) -> None:
    (stage,) = plan(options, "DenseVLM", 1)
    assert stage.inputs == (options.output / "seed1" / "CLIPSelf" / "model_final.pth",)
    assert any(str(stage.inputs[0]) in text for text in stage.command)


def test_the_table_has_mean_and_deviation_over_seeds(options) -> None:
    same = dict.fromkeys((*compare_distillers.COLUMNS, "mIoU"), 3.0)
    scores = [{**same, "things": 10.0 + n, "drop": -1.0} for n in (0, 2)]
    page = format_page(options, {"CLIPSelf": scores, "DenseRC": []}, "python tool")
    assert "| CLIPSelf | 2 | 11.0 +- 1.4 | -1.0 +- 0.0 | 3.0 +- 0.0 |" in page
    assert "| DenseRC" not in page
    assert "RANDOM weights" in page
    assert "| mIoU |\n" in page


def test_a_trained_vision_model_adds_a_line_to_each_method_that_reads_one(options) -> None:
    assert lines(options) == list(METHODS)
    with_vfm = replace(options, vfm=Path("vfm.pth"), methods=("CLIPSelf", "DeCLIP"))
    assert lines(with_vfm) == ["CLIPSelf", "DeCLIP", "DeCLIP+VFM"]
    random, trained = (plan(with_vfm, name, 0)[0] for name in ("DeCLIP", "DeCLIP+VFM"))
    assert trained.output == random.output.with_name("DeCLIP+VFM")
    added = set(trained.command) - set(random.command)
    assert added == {str(trained.output), "MODEL.VFM.WEIGHTS", "vfm.pth"}


def test_the_methods_that_read_a_vision_model_are_those_whose_terms_need_it() -> None:
    for method, recipe in METHODS.items():
        cfg = load_config(str(REPOSITORY / "configs" / "emoji" / f"{recipe}.yaml"), [])
        needed = [term.needs for term in read_terms(cfg.MODEL.DISTILL.TERMS or [{"loss": "crop"}])]
        assert (method in compare_distillers.READ_VFM) == any("vfm" in need for need in needed)


def test_what_has_results_is_not_run_again(options, monkeypatch) -> None:
    runs: list[str] = []

    def fake(stage, data_root) -> float:
        runs.append(stage.name)
        tasks = {task: {} for task, _ in compare_distillers.COLUMNS.values()}
        for task, key in compare_distillers.COLUMNS.values():
            tasks[task][key] = 1.0
        stage.output.mkdir(parents=True)
        results = {compare_distillers.REGIONS: tasks}
        write_json(stage.output / compare_distillers.RESULTS_FILE, results)
        return 0.0

    monkeypatch.setattr(quickstart, "run_stage", fake)
    monkeypatch.setattr(compare_distillers, "dense_miou", lambda cfg: 5.0)
    few = replace(options, methods=("CLIPSelf",))
    run_comparison(few, "first")
    run_comparison(few, "second")
    assert runs == ["CLIPSelf", "CLIPSelf"]  # one for each seed
    assert "| CLIPSelf | 2 | 1.0 +- 0.0" in options.page.read_text()


def test_the_dense_map_of_the_embedded_clip_tells_classes_apart(emoji_data) -> None:
    recipe = str(REPOSITORY / "configs" / "emoji" / "clipself_patches.yaml")
    trained = dense_miou(load_config(recipe, []))
    random = dense_miou(load_config(recipe, ["MODEL.CLIP.PRETRAINED", "", "SEED", "0"]))
    assert trained > random + 1.0


def test_a_missing_vision_model_is_said_before_anything_is_trained(options) -> None:
    with pytest.raises(FileNotFoundError, match=r"--vfm nothing\.pth does not exist"):
        run_comparison(replace(options, vfm=Path("nothing.pth")), "command")
