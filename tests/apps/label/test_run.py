"""Labels of a folder: thresholds, going on after a kill, shares, and a data set that loads."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image

from clipself_d2.apps.label.ontology import LabelClass
from clipself_d2.apps.label.run import LabelOptions, label, read_rows
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.data.datasets.custom import resolve_dataset_names
from clipself_d2.engine.trainer import Trainer
from clipself_d2.parts.recipe_files import get_config_file

CLASSES = (LabelClass("dog", ("dog", "puppy"), 0.4), LabelClass("cat", ("cat",), 0.6))


class FakePredictor:
    """Says of every picture: a dog of score 0.5 and a cat of score 0.5; stops after some."""

    def __init__(self, limit: int = 1000) -> None:
        self.seen: list[str] = []
        self.limit = limit
        self.model = self

    def set_classes(self, classes: list[str]) -> None:
        self.classes = classes

    def detect_all(self, paths: list[str]) -> list[dict[str, Instances]]:
        if len(self.seen) >= self.limit:
            raise KeyboardInterrupt
        self.seen += paths
        return [{"instances": self._found()} for _ in paths]

    def _found(self) -> Instances:
        found = Instances((30, 40))
        found.pred_boxes = Boxes(torch.tensor([[1.0, 2, 11, 22], [0, 0, 5, 5]]))
        found.scores, found.pred_classes = torch.tensor([0.5, 0.5]), torch.tensor([0, 1])
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(5):
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / f"in/{number}.png")
    return tmp_path / "in"


def options(source: Path | str, output: Path, **more: object) -> LabelOptions:
    return LabelOptions(str(source), output, CLASSES, batch_size=1, **more)


def test_labels_are_a_data_set_that_loads(folder: Path, tmp_path: Path, catalogs: None) -> None:
    predictor = FakePredictor()
    path = label(predictor, options(folder, tmp_path / "out"))
    assert predictor.classes == ["dog;puppy", "cat"]
    name = f"coco_json:{path}:{folder}"
    resolve_dataset_names([name])
    records = DatasetCatalog.get(name)
    assert [Path(record["file_name"]).name for record in records] == [f"{n}.png" for n in range(5)]
    # The cat is below its threshold.
    assert [[a["category_id"] for a in record["annotations"]] for record in records] == [[0]] * 5
    assert records[0]["annotations"][0]["bbox"] == [1, 2, 10, 20]
    assert (tmp_path / "out/contact_sheet.png").is_file()


def test_a_killed_run_goes_on_and_labels_nothing_twice(folder: Path, tmp_path: Path) -> None:
    killed, second = FakePredictor(limit=2), FakePredictor()
    with pytest.raises(KeyboardInterrupt):
        label(killed, options(folder, tmp_path / "out"))
    (part,) = (tmp_path / "out/parts").iterdir()
    part.write_text(part.read_text()[:-30])
    label(second, options(folder, tmp_path / "out"))
    # The second line was cut, so that its picture is done again.
    assert [Path(name).stem for name in second.seen] == ["1", "2", "3", "4"]
    assert len(list(read_rows(tmp_path / "out"))) == 5
    assert len(json.loads((tmp_path / "out/labels.json").read_text())["images"]) == 5


def test_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    label(FakePredictor(), options(folder, tmp_path / "out"))
    with pytest.raises(ValueError, match="another input, ontology, config or checkpoint"):
        label(FakePredictor(), options(folder, tmp_path / "out", settings="x"))


def test_processes_share_the_members_of_a_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a-000.tar", "w") as shard:
        for file in sorted(folder.iterdir()):
            shard.add(file, file.name)
    seen = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    for rank in (1, 0):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        predictor = FakePredictor()
        (tmp_path / "out/parts").mkdir(parents=True, exist_ok=True)
        label(predictor, options(tmp_path / "a-{000..000}.tar", tmp_path / "out"))
        seen.append([name.partition("::")[2][0] for name in predictor.seen])
    assert seen == [["1", "3"], ["0", "2", "4"]]
    assert len(json.loads((tmp_path / "out/labels.json").read_text())["images"]) == 5


@pytest.mark.slow
def test_labels_by_the_shipped_detector_train_another(
    emoji_cfg, emoji_data: Path, tmp_path: Path
) -> None:
    """The file is a training set as it is."""
    recipe = "emoji/fvit_clipself.yaml"
    words = json.loads((emoji_data / "emoji/annotations/instances_val.json").read_text())
    classes = tuple(LabelClass(c["name"], (c["name"],), 0.3) for c in words["categories"])
    predictor = OpenVocabPredictor(
        get_config_file(recipe),
        "clipself_d2://emoji/fvit_clipself.pth",
        overrides=["MODEL.DEVICE", "cpu"],
        min_score=0.3,
    )
    pictures, output = emoji_data / "emoji" / "train", tmp_path / "labels"
    path = label(predictor, LabelOptions(str(pictures), output, classes))
    boxes = json.loads(path.read_text())["annotations"]
    assert len(boxes) > 20
    name = f"coco_json:{path}:{pictures}"
    resolve_dataset_names([name])
    cfg = emoji_cfg("fvit_untouched", "DATASETS.TRAIN", (name,), "SOLVER.MAX_ITER", 30)
    cfg.merge_from_list(["MODEL.CLIP.PRETRAINED", "emoji", "MODEL.CLIP.WEIGHTS", "emoji_clipself"])
    cfg.merge_from_list(["SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0])
    trainer = Trainer(cfg)
    trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_other_forms_hold_the_same_boxes(form: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("supervision", exc_type=ImportError)
    path = label(FakePredictor(), options(folder, tmp_path / "out", form=form))
    texts = [file.read_text() for file in (path / "labels").iterdir()]
    boxes = [t.count("<object>") if form == "voc" else len(t.splitlines()) for t in texts]
    assert boxes == [1] * 5
