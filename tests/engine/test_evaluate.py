import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.datasets.custom import folder_name, resolve_dataset_names
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.evaluate import protocol_of, vocabulary_of
from clipself_d2.engine.trainer import Trainer
from clipself_d2.layers import TextClassifier
from clipself_d2.parts.text_embeddings import read_text_embeddings
from clipself_d2.vocabulary import Vocabulary

TINY = ("MODEL.CLIP.PRETRAINED", "emoji")
# Every detection counts, in the protocols of both benchmarks.
ALL = (*TINY, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
BOTH = (*ALL, "DATASETS.TEST", ("emoji_ov_val", "emoji_lvis_val"))


def classifier(model: torch.nn.Module) -> TextClassifier:
    return next(module for module in model.modules() if isinstance(module, TextClassifier))


def test_a_data_sets_vocabulary_is_used_and_given_back(emoji_cfg, catalogs) -> None:
    cfg = emoji_cfg("fvit_untouched", *TINY)
    model = Trainer.build_model(cfg)
    before = classifier(model).embeddings_KD.clone()
    MetadataCatalog.get("three_words").set(thing_classes=["dog", "car", "key"])
    with vocabulary_of(cfg, model, "three_words"):
        assert classifier(model).num_classes == 3
    assert torch.equal(classifier(model).embeddings_KD, before)


def test_a_model_without_text_is_left_alone(emoji_cfg) -> None:
    with vocabulary_of(emoji_cfg("rpn"), torch.nn.Linear(1, 1), "emoji_ov_val") as nothing:
        assert nothing is None


def test_both_protocols_score_a_detector_and_the_results_are_written(emoji_cfg) -> None:
    cfg = emoji_cfg("fvit_untouched", *BOTH)
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())
    assert set(results) == {"emoji_ov_val", "emoji_lvis_val"}
    written = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    coco, lvis = written["emoji_ov_val"]["bbox"], written["emoji_lvis_val"]["bbox"]
    assert {"AP50-base", "AP50-novel", "AP50-all"} <= set(coco)
    assert {"AP", "APr", "APc", "APf"} <= set(lvis)
    assert not any("Fixed" in metric for metric in lvis)
    protocol = written["emoji_lvis_val"]["protocol"]
    assert (protocol["evaluator"], protocol["scorer"]) == ("lvis_ov", "hotcoco")
    assert (protocol["detections_per_image"], protocol["classes"]) == (300, 80)
    assert (protocol["clip"], protocol["names"]) == (cfg.MODEL.CLIP.NAME, "own")
    assert "protocol" not in results["emoji_lvis_val"]
    table = Path(cfg.OUTPUT_DIR) / "inference" / "emoji_lvis_val" / "classes_bbox.csv"
    assert len(table.read_text().splitlines()) == 81


def test_both_scorers_agree_on_both_protocols(emoji_cfg) -> None:
    scores = []
    for backend in ("hotcoco", "reference"):
        cfg = emoji_cfg("fvit_untouched", *BOTH, "TEST.BACKEND", backend, "TEST.FIXED_AP", True)
        torch.manual_seed(0)
        results = Trainer.test(cfg, Trainer.build_model(cfg).eval())
        scores.append({**results["emoji_ov_val"]["bbox"], **results["emoji_lvis_val"]["bbox"]})
    fast, reference = scores
    assert set(fast) == set(reference)
    assert max(fast["AP50"], fast["APf"]) > 0
    assert "APfFixed" in fast
    for name, value in fast.items():
        assert value == pytest.approx(reference[name], abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize(("limit", "warned"), [(300, True), (301, False), (-1, False)])
def test_fixed_ap_asks_for_a_model_without_a_limit(
    emoji_cfg, caplog: pytest.LogCaptureFixture, limit: int, warned: bool
) -> None:
    cfg = emoji_cfg("rpn", "TEST.FIXED_AP", True, "TEST.DETECTIONS_PER_IMAGE", limit)
    with caplog.at_level("WARNING", logger="clipself_d2"):
        Trainer.test(cfg, torch.nn.Linear(1, 1))
    assert ("raise TEST.DETECTIONS_PER_IMAGE" in caplog.text) == warned


def test_regions_of_the_shipped_clip_are_named_better_by_crops(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", *TINY, "DATASETS.TEST", ("emoji_panoptic_val",))
    results = DistillTrainer.test(cfg, DistillTrainer.build_model(cfg).eval())["region"]
    assert results["crop.thing.macc1"] > 60
    assert results["crop.thing.macc1"] > 3 * results["roi.thing.macc1"]


def test_regions_need_panoptic_ground_truth(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "DATASETS.TEST", ("emoji_ov_val",))
    with pytest.raises(ValueError, match=r"DATASETS\.TEST holds emoji_ov_val"):
        DistillTrainer.test(cfg, DistillTrainer.build_model(cfg))


@pytest.fixture
def synonyms(emoji_data: Path) -> list[list[str]]:
    """Short names of some emoji classes, but for the hot dog, since the dog is a class."""
    metadata = MetadataCatalog.get("emoji_ov_val")
    free = zip(metadata.thing_classes, metadata.class_synonyms, strict=True)
    return [[] if name == "hot dog" else words for name, words in free]


def test_synonyms_change_what_is_prompted_and_nothing_else(emoji_cfg, synonyms) -> None:
    cfg = emoji_cfg("fvit_untouched", *TINY, "TEST.SYNONYMS", True)
    model = Trainer.build_model(cfg)
    own = classifier(model).embeddings_KD.clone()
    base = classifier(model).base_mask.clone()
    with vocabulary_of(cfg, model, "emoji_ov_val"):
        embeddings = classifier(model).embeddings_KD
        changed = (embeddings - own).abs().amax(1) > 1e-4
        assert changed.tolist() == [bool(words) for words in synonyms]
        place = next(i for i, words in enumerate(synonyms) if words)
        synonym = Vocabulary.from_names(synonyms[place])
        first = read_text_embeddings(cfg, synonym).embeddings_KD[0]
        torch.testing.assert_close(embeddings[place], first)
        assert torch.equal(classifier(model).base_mask, base)


def test_the_report_says_that_names_were_synonyms(emoji_cfg, synonyms) -> None:
    keys = ("TEST.SYNONYMS", True, "DATASETS.TEST", ("emoji_ov_val",))
    cfg = emoji_cfg("fvit_untouched", *TINY, *keys)
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())
    assert "AP50-novel" in results["bbox"]
    written = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    protocol = written["emoji_ov_val"]["protocol"]
    replaced = sum(bool(words) for words in synonyms)
    assert (protocol["names"], protocol["names_replaced"]) == ("synonyms", replaced)
    assert protocol["collisions"] == ["dog for hot dog"]


def test_one_pass_scores_the_names_and_every_index_of_a_detector(emoji_cfg, caplog) -> None:
    cfg = emoji_cfg("fvit_untouched", *ALL, "DATASETS.TEST", ("emoji_ov_val",))
    cfg.merge_from_list(["TEST.SYNONYMS", True, "TEST.SYNONYM_MODE", "all"])
    model = Trainer.build_model(cfg).eval()
    seen = []
    model.backbone.bottom_up.register_forward_hook(lambda *_: seen.append(1))
    with caplog.at_level("WARNING", logger="clipself_d2"):
        found = Trainer.test(cfg, model)
    assert caplog.text.count("dog for hot dog") == 1
    assert len(seen) == len(DatasetCatalog.get("emoji_ov_val"))
    assert "forward" not in vars(model.backbone)
    assert found["bbox"]["AP50"] == pytest.approx(
        found["synonyms"]["bbox.AP50.mean"] + found["synonyms"]["bbox.AP50.drop"]
    )

    def written(folder: str = "") -> list[dict]:
        inference = Path(cfg.OUTPUT_DIR) / folder / "inference" / "emoji_ov_val"
        return json.loads((inference / "coco_instances_results.json").read_text())

    second, own = written("synonyms/1"), written()
    assert second != written("synonyms/0")
    for pair, expected in (
        (("TEST.SYNONYMS", False), own),
        (("TEST.SYNONYMS", True, "TEST.SYNONYM_MODE", "index:1"), second),
    ):
        cfg.merge_from_list(pair)
        Trainer.test(cfg, model)
        assert written() == expected
    assert own != second


def test_one_pass_scores_the_names_and_every_index_of_regions(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", *TINY, "DATASETS.TEST", ("emoji_panoptic_val",))
    cfg.merge_from_list(["TEST.SYNONYMS", True, "TEST.SYNONYM_MODE", "all"])
    model = DistillTrainer.build_model(cfg).eval()
    found = DistillTrainer.test(cfg, model)
    cfg.merge_from_list(["TEST.SYNONYM_MODE", "index:1"])
    second = DistillTrainer.test(cfg, model)["region"]["crop.thing.macc1"]
    assert found["synonyms"]["region.crop.thing.macc1.worst"] <= second
    assert found["synonyms"]["region.crop.thing.macc1.drop"] > 0
    # Stuff has no synonyms; the others' names are still its rivals.
    assert set(found["region"]) == {
        key.removeprefix("region.").rpartition(".")[0] for key in found["synonyms"]
    }


def test_synonyms_need_some(emoji_cfg, catalogs) -> None:
    cfg = emoji_cfg("fvit_untouched", *TINY, "TEST.SYNONYMS", True)
    model = Trainer.build_model(cfg)
    MetadataCatalog.get("no_synonyms").set(thing_classes=["dog", "car"])
    with pytest.raises(ValueError, match=r"class_synonyms in the metadata of no_synonyms"):
        vocabulary_of(cfg, model, "no_synonyms")


def detections(cfg, name: str) -> dict[tuple[int, str], list[float]]:
    """Scores by image and class, as prompted, in descending order."""
    folder = Path(cfg.OUTPUT_DIR) / "inference" / folder_name(name)
    rows = json.loads((folder / "coco_instances_results.json").read_text())
    metadata = MetadataCatalog.get(name)
    numbers = metadata.thing_dataset_id_to_contiguous_id
    found: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        prompt = metadata.thing_classes[numbers[row["category_id"]]].replace("_", " ").lower()
        found.setdefault((row["image_id"], prompt), []).append(row["score"])
    return {key: sorted(scores, reverse=True) for key, scores in found.items()}


def test_transfer_to_other_names_and_ids_finds_the_same_things(
    emoji_cfg, emoji_data: Path, tmp_path: Path, catalogs
) -> None:
    """The same classes spelt otherwise, under other ids in another order, are prompted alike."""
    own = json.loads((emoji_data / "emoji" / "annotations" / "instances_val.json").read_text())
    number = {row["id"]: 7 + 3 * place for place, row in enumerate(own["categories"][::-1])}
    for row in own["categories"]:
        row.update(id=number[row["id"]], name=row["name"].title().replace(" ", "_"))
    for row in own["annotations"]:
        row["category_id"] = number[row["category_id"]]
    file = tmp_path / "other.json"
    file.write_text(json.dumps(own))
    base = MetadataCatalog.get("emoji_ov_val").base_classes
    renamed = ",".join(name.title().replace(" ", "_") for name in base)
    other = f"coco_json:{file}:{emoji_data / 'emoji' / 'val'}:base={renamed}"
    resolve_dataset_names([other])
    cfg = emoji_cfg("fvit_untouched", *ALL, "DATASETS.TEST", ("emoji_ov_val", other))
    model = Trainer.build_model(cfg).eval()
    before = classifier(model).embeddings_KD.clone()
    results = Trainer.test(cfg, model)
    mine, theirs = (detections(cfg, name) for name in cfg.DATASETS.TEST)
    assert MetadataCatalog.get(other).thing_classes[0] != "Airplane"
    assert len(mine) > 40
    assert mine.keys() == theirs.keys()
    for key, scores in mine.items():
        assert theirs[key] == pytest.approx(scores, rel=1e-4), key
    names = {key for key in results[other]["bbox"] if key.startswith("AP-")}
    assert "AP-Alarm_Clock" in names
    assert results[other]["bbox"]["AP50-novel"] == pytest.approx(
        results["emoji_ov_val"]["bbox"]["AP50-novel"], abs=1e-6
    )
    assert torch.equal(classifier(model).embeddings_KD, before)


def test_a_referring_model_records_its_threshold_and_a_detector_its_limit(emoji_cfg) -> None:
    cfg = emoji_cfg("cris")
    model = torch.nn.Linear(1, 1)
    model.mask_threshold = 0.25
    protocol = protocol_of(cfg, model, "emoji_refer_val", None)
    assert protocol == {"evaluator": "refer", "mask_threshold": 0.25}
    protocol = protocol_of(cfg, model, "emoji_ov_val", None)
    assert protocol == {"evaluator": "coco_ov", "model_detections_per_image": 100}
