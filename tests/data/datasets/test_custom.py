import json
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.build import build_distill_train_loader_from_cfg
from clipself_d2.data.datasets.custom import folder_name, resolve_dataset_names
from clipself_d2.engine.cli import load_config
from clipself_d2.evaluation import build_evaluator
from clipself_d2.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("catalogs")
Write = Callable[..., Path]


@pytest.fixture
def farm(tmp_path: Path, write_picture: Write) -> Path:
    """A folder with ``farm.json`` (horse, hen, goat), ``images/`` and ``base.txt`` (horse, hen)."""
    document = {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30}
            for number in (1, 2)
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category}
            | {"bbox": [5, 5, 9, 9], "area": 81, "iscrowd": 0}
            for number, image, category in ((1, 1, 5), (2, 1, 9), (3, 2, 2))
        ],
        "categories": [
            {"id": 5, "name": "horse"},
            {"id": 2, "name": "hen"},
            {"id": 9, "name": "goat"},
        ],
    }
    (tmp_path / "farm.json").write_text(json.dumps(document))
    (tmp_path / "base.txt").write_text("horse\nhen\n")
    for number in (1, 2):
        write_picture(tmp_path / "images" / f"{number}.jpg")
    return tmp_path


def test_one_line_names_a_detection_set_of_ones_own(farm: Path) -> None:
    spec = f"coco_json:{farm}/farm.json:{farm}/images"
    assert resolve_dataset_names([spec, "coco_ov_val"]) == (spec, "coco_ov_val")
    metadata = MetadataCatalog.get(spec)
    assert metadata.thing_classes == ["hen", "horse", "goat"]
    assert (metadata.novel_classes, len(metadata.base_classes)) == ([], 3)
    records = DatasetCatalog.get(spec)
    classes = [[row["category_id"] for row in record["annotations"]] for record in records]
    assert classes == [[1, 2], [0]]
    build_evaluator(spec, None)


def test_the_base_file_divides_the_classes_and_training_sees_base_boxes(farm: Path) -> None:
    spec = f"coco_json:{farm}/farm.json:{farm}/images:{farm}/base.txt"
    resolve_dataset_names([spec])
    vocabulary = Vocabulary.from_metadata(MetadataCatalog.get(spec))
    assert vocabulary.novel_names == ("goat",)
    classes = [[row["category_id"] for row in r["annotations"]] for r in DatasetCatalog.get(spec)]
    assert classes == [[1], [0]]


def test_base_classes_may_be_named_in_place_or_by_a_file_with_synonyms(farm: Path) -> None:
    place = f"coco_json:{farm}/farm.json:{farm}/images"
    base = {"names": ["horse", "hen", "goat"], "novel": ["goat"]}
    words = {**base, "names": ["goat", "horse", "hen"], "synonyms": {"hen": ["fowl"]}}
    for name, content in (("base", base), ("words", words)):
        (farm / f"{name}.json").write_text(json.dumps(content))
    given = ("base= horse,hen", f"{farm}/base.json", f"{farm}/words.json")
    specs = [f"{place}:{each}" for each in given]
    resolve_dataset_names(specs)
    for spec in specs:
        metadata = MetadataCatalog.get(spec)
        assert (metadata.base_classes, metadata.novel_classes) == (["hen", "horse"], ["goat"])
        rows = [[row["category_id"] for row in r["annotations"]] for r in DatasetCatalog.get(spec)]
        assert rows == [[1], [0]]
    # In the order of thing_classes, not of the file.
    assert MetadataCatalog.get(specs[2]).class_synonyms == [["fowl"], [], []]
    assert MetadataCatalog.get(specs[1]).get("class_synonyms") is None
    assert len({folder_name(spec) for spec in specs}) == 3


def test_a_specification_survives_the_command_line(farm: Path) -> None:
    spec = f"coco_json:{farm}/farm.json:{farm}/images:base=horse,hen"
    cfg = load_config("", ["DATASETS.TRAIN", f"('{spec}',)"])
    assert resolve_dataset_names(cfg.DATASETS.TRAIN) == (spec,)
    assert len(DatasetCatalog.get(spec)) == 2


def test_naming_a_set_twice_registers_it_once(farm: Path) -> None:
    spec = f"images:{farm}/images"
    resolve_dataset_names([spec, spec])
    resolve_dataset_names([spec])
    assert DatasetCatalog.list().count(spec) == 1


def test_images_of_every_kind(
    farm: Path, write_shard: Write, jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(farm)
    (farm / "list.txt").write_text("images/2.jpg\n")
    write_shard(farm / "s-00.tar", {"x.jpg": jpeg(5)})
    specs = [
        "images:images",
        "images:list.txt",
        "coco_images:farm.json:images",
        "webdataset:s-{00..00}.tar",
    ]
    resolve_dataset_names(specs)
    ids = [[record["image_id"] for record in DatasetCatalog.get(spec)] for spec in specs]
    assert ids == [["1.jpg", "2.jpg"], ["images/2.jpg"], [1, 2], ["s-00/x.jpg"]]


def test_shards_and_folders_feed_the_distillation(
    farm: Path, write_shard: Write, jpeg: Callable[[int], bytes], emoji_cfg
) -> None:
    write_shard(farm / "s-0.tar", {"x.jpg": jpeg(5), "y.jpg": jpeg(5)})
    for spec in (f"webdataset:{farm}/s-{{0..0}}.tar", f"images:{farm}/images"):
        resolve_dataset_names([spec])
        cfg = emoji_cfg("clipself_patches", "DATASETS.TRAIN", (spec,))
        batch = next(iter(build_distill_train_loader_from_cfg(cfg)))
        assert {item["image_id"] for item in batch} == {
            record["image_id"] for record in DatasetCatalog.get(spec)
        }


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("images:{}/gone", "gone does not exist"),
        ("coco_json:{}/gone.json:{}/images", r"annotation file .*gone\.json does not exist"),
        ("coco_json:{}/farm.json:{}/gone", "image folder .*gone does not exist"),
        ("coco_json:{}/farm.json:{}/images:{}/gone.txt", r"gone\.txt does not exist"),
        ("coco_images:{}/gone.json:{}/images", r"gone\.json does not exist"),
        ("webdataset:{}/s-{{00..03}}.tar", r"s-00\.tar .* does not exist"),
    ],
)
def test_what_is_missing_is_named(spec: str, complaint: str, farm: Path) -> None:
    with pytest.raises(FileNotFoundError, match=complaint):
        resolve_dataset_names([spec.replace("{}", str(farm)).replace("{{", "{").replace("}}", "}")])


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("coco:/a.json:/b", "kind 'coco', expected one of .*coco_json:FILE"),
        ("coco_json:/a.json", "1 paths after its kind; expected coco_json:FILE"),
        ("coco_json:/a.json:/b:/c:/d", "4 paths"),
        ("coco_images:/a.json:", "expected coco_images:FILE"),
        ("images:", "expected images:FOLDER"),
        ("webdataset:", "expected webdataset:SHARD"),
    ],
)
def test_a_malformed_specification_shows_the_form(spec: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        resolve_dataset_names([spec])


def test_a_faulty_annotation_file_is_an_error_before_it_is_used(farm: Path) -> None:
    content = json.loads((farm / "farm.json").read_text())
    del content["categories"][0]["name"]
    (farm / "farm.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"farm\.json lacks the key 'name' in entry 0"):
        resolve_dataset_names([f"coco_json:{farm}/farm.json:{farm}/images"])


def test_a_base_class_that_the_file_lacks_is_named_with_the_nearest(farm: Path) -> None:
    (farm / "base.txt").write_text("horse\nhens\n")
    with pytest.raises(ValueError, match=r"'hens' of .*base\.txt is none of the 3.*'hen' is"):
        resolve_dataset_names([f"coco_json:{farm}/farm.json:{farm}/images:{farm}/base.txt"])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [("base=", "names no base class"), ("base=horse,cow", "'cow' of base=horse,cow is none of")],
)
def test_base_classes_named_in_place_are_checked(given: str, complaint: str, farm: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        resolve_dataset_names([f"coco_json:{farm}/farm.json:{farm}/images:{given}"])


def test_a_missing_image_is_named_when_the_set_is_read(farm: Path) -> None:
    (farm / "images" / "2.jpg").unlink()
    spec = f"coco_json:{farm}/farm.json:{farm}/images"
    resolve_dataset_names([spec])
    with pytest.raises(FileNotFoundError, match=r"images/2\.jpg is missing; correct"):
        DatasetCatalog.get(spec)


def test_results_of_a_specification_have_one_folder_of_their_own() -> None:
    assert folder_name("coco_ov_val") == "coco_ov_val"
    names = [folder_name(f"coco_json:/data/{farm}/val.json:/images") for farm in ("a", "b")]
    assert all(name.startswith("coco_json_val_") and "/" not in name for name in names)
    assert names[0] != names[1]
