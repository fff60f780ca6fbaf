import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from clipself_d2.apps.predict import demo
from clipself_d2.apps.predict.demo import (
    Wishes,
    choose_vocabulary,
    draw,
    parse_reference,
    parse_threshold,
    run_demo,
    set_wished_classes,
)
from clipself_d2.apps.predict.prompts import parse_classes
from clipself_d2.engine.trainer import Trainer
from clipself_d2.vocabulary import Vocabulary


def test_custom_names_are_split_and_stripped() -> None:
    names = choose_vocabulary("custom", " police car, teddy bear ,").names
    assert names == ("police car", "teddy bear")


@pytest.mark.parametrize(
    ("kind", "words", "complaint"),
    [
        ("custom", "police car,teddy bear,police car", r"repeats \['police car'\]"),
        ("custom", "", "--custom-vocabulary is empty"),
        ("custom", " , ,", "--custom-vocabulary is empty"),
        ("coco_of_mars", "", "custom, a registered data set"),
        ("emoji_ov_vall", "", "did you mean 'emoji_ov_val'"),
        ("emoji_ov_val", "dog", "--custom-vocabulary 'dog' goes with --vocabulary custom"),
    ],
)
def test_a_vocabulary_that_cannot_be_had_is_refused(kind: str, words: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        choose_vocabulary(kind, words)


def test_a_data_set_gives_its_classes(emoji_data: Path) -> None:
    vocabulary = choose_vocabulary("emoji_ov_val", "")
    assert vocabulary.num_classes == 80
    assert len(vocabulary.novel_names) == 20


def test_a_file_gives_its_lines(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog\nhot dog\n")
    assert choose_vocabulary(str(tmp_path / "names.txt"), "").names == ("dog", "hot dog")


def test_synonyms_stand_behind_semicolons() -> None:
    vocabulary = choose_vocabulary("custom", "a,b;synonym of b; another")
    assert vocabulary.names == ("a", "b")
    assert vocabulary.synonyms == ((), ("synonym of b", "another"))


def detector(emoji_cfg, tmp_path: Path, name: str = "fvit_untouched"):
    cfg = emoji_cfg(name, "MODEL.RPN.POST_NMS_TOPK_TEST", 20)
    # The text tower without weights is another one whenever it is built.
    cfg.MODEL.CLIP.PRETRAINED = "emoji"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    return cfg


def test_typed_words_are_drawn_and_the_unseen_ones_warned_of(
    emoji_cfg, pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = detector(emoji_cfg, tmp_path)
    picture = pictures[0]
    vocabulary = choose_vocabulary("custom", "police car,wombat")
    with caplog.at_level("WARNING", logger="clipself_d2"):
        written = run_demo(cfg, [picture], tmp_path / "drawn", vocabulary, 0.0)
    assert [path.name for path in written] == [f"{picture.stem}.png"]
    drawn = np.asarray(Image.open(written[0]))
    assert drawn.shape[1] >= 640
    assert "wombat" in caplog.text
    assert "police" not in caplog.text


def test_a_damaged_picture_stops_before_anything_is_written(
    emoji_cfg, emoji_data: Path, tmp_path: Path
) -> None:
    cfg = detector(emoji_cfg, tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    vocabulary = choose_vocabulary("custom", "dog")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        run_demo(cfg, [tmp_path / "bad.jpg"], tmp_path / "drawn", vocabulary, 0.5)
    assert not (tmp_path / "drawn").exists()


def test_no_weights_name_the_key(emoji_cfg, tmp_path: Path) -> None:
    cfg = emoji_cfg("fvit_untouched")
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        run_demo(cfg, [], tmp_path, choose_vocabulary("custom", "dog"), 0.5)


@pytest.fixture
def film(pictures: list[Path], tmp_path: Path) -> Path:
    """Three scenes as frames of 96 x 64 px at 5 a second."""
    pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (96, 64))
    for scene in pictures[:3]:
        writer.write(cv2.resize(cv2.imread(str(scene)), (96, 64)))
    writer.release()
    return path


def read_film(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(frame)


def test_pictures_and_films_are_drawn_and_all_detections_are_in_one_file(
    emoji_cfg, pictures: list[Path], film: Path, tmp_path: Path
) -> None:
    cfg = detector(emoji_cfg, tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(pictures[0], tmp_path / folder / "scene.jpg")
    vocabulary = choose_vocabulary("custom", "dog,police car;squad car")
    inputs = [tmp_path / "a", f"{tmp_path}/b/*.jpg", film]
    written = run_demo(cfg, inputs, tmp_path / "drawn", vocabulary, 0.0)
    assert [path.name for path in written] == ["scene.png", "scene_2.png", "film.mp4"]
    frames = read_film(written[2])
    assert len(frames) == 3
    assert frames[0].shape[1] >= 640
    coco = COCO(str(tmp_path / "drawn" / "detections.json"))
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images[:2]] == [
        str(tmp_path / folder / "scene.jpg") for folder in ("a", "b")
    ]
    assert [(image["frame"], image["width"]) for image in images[2:]] == [(0, 96), (1, 96), (2, 96)]
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == ["dog", "police car"]
    first, second = (coco.imgToAnns[number] for number in (1, 2))
    assert [row["score"] for row in first] == pytest.approx([row["score"] for row in second])
    assert len(first) > 0


def read_annotations(folder: Path) -> list[dict]:
    return json.loads((folder / "detections.json").read_text())["annotations"]


def test_the_threshold_keeps_the_best(emoji_cfg, pictures: list[Path], tmp_path: Path) -> None:
    cfg = detector(emoji_cfg, tmp_path)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.9
    vocabulary = choose_vocabulary("custom", "dog,apple")
    run_demo(cfg, [pictures[0]], tmp_path / "all", vocabulary, 0.0)
    scores = sorted(row["score"] for row in read_annotations(tmp_path / "all"))
    middle = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    run_demo(cfg, [pictures[0]], tmp_path / "best", vocabulary, middle)
    best = [row["score"] for row in read_annotations(tmp_path / "best")]
    assert sorted(best) == [score for score in scores if score >= middle]
    assert len(best) < len(scores)


def test_a_film_ends_at_the_limit(emoji_cfg, film: Path, tmp_path: Path) -> None:
    cfg = detector(emoji_cfg, tmp_path)
    vocabulary = choose_vocabulary("custom", "dog")
    written = run_demo(cfg, [film], tmp_path / "drawn", vocabulary, 0.5, max_frames=2)
    assert len(read_film(written[0])) == 2


class Camera:
    """OpenCV's reader of a camera that is stopped from the keyboard after three frames."""

    def __init__(self, number: int) -> None:
        assert number == 1
        self.left = 3

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, key: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return True, np.zeros((32, 48, 3), np.uint8)

    def release(self) -> None:
        self.left = 0


def test_a_camera_is_read_until_the_keyboard_interrupt(
    emoji_cfg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    cfg = detector(emoji_cfg, tmp_path)
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    words = choose_vocabulary("custom", "dog")
    written = run_demo(cfg, [], tmp_path / "drawn", words, 0.5, webcam=1, batch_size=1)
    monkeypatch.undo()
    assert [path.name for path in written] == ["webcam1.mp4"]
    assert len(read_film(written[0])) == 3
    assert (tmp_path / "drawn" / "detections.json").is_file()


def test_a_camera_that_is_not_there_stops_before_anything_is_written(
    emoji_cfg, tmp_path: Path
) -> None:
    cfg = detector(emoji_cfg, tmp_path)
    with pytest.raises(ValueError, match="no camera 77"):
        run_demo(cfg, [], tmp_path / "drawn", choose_vocabulary("custom", "dog"), 0.5, webcam=77)
    assert not (tmp_path / "drawn").exists()


def test_a_model_that_is_no_detector_is_refused(
    emoji_cfg, pictures: list[Path], tmp_path: Path
) -> None:
    cfg = emoji_cfg("rpn")
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "rpn.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "rpn.pth")
    with pytest.raises(ValueError, match="ProposalNetwork of this config has no text classifier"):
        run_demo(cfg, pictures[:1], tmp_path / "drawn", choose_vocabulary("custom", "dog"), 0.5)


def test_boxes_are_drawn_in_the_colour_of_their_class() -> None:
    found = Instances((100, 700))
    found.pred_boxes = Boxes(torch.tensor([[50.0, 30.0, 150.0, 90.0], [450.0, 30.0, 550.0, 90.0]]))
    found.scores = torch.tensor([0.9, 0.8])
    found.pred_classes = torch.tensor([0, 0])
    image = np.zeros((100, 700, 3), np.uint8)
    one = draw(image, found, ["dog", "cat"])
    found.pred_classes = torch.tensor([0, 1])
    two = draw(image, found, ["dog", "cat"])
    left, right = (slice(60, 80), slice(46, 54)), (slice(60, 80), slice(446, 454))

    def hue(picture: np.ndarray, place: tuple[slice, slice]) -> int:
        return int(picture[place].sum((0, 1)).argmax())

    assert hue(one, left) == hue(one, right) == hue(two, left) == 0
    assert hue(two, right) != 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cascade", "retinanet", "fcos"])
def test_every_text_detector_trains_and_is_shown(
    name: str, emoji_cfg, pictures: list[Path], film: Path, tmp_path: Path
) -> None:
    cfg = emoji_cfg(name, "MODEL.CLIP.PRETRAINED", "emoji", "DATASETS.TEST", ("emoji_ov_val",))
    cfg.TEST.EVAL_PERIOD = 4
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    assert "bbox" in results["emoji_ov_val"]
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    words = choose_vocabulary("custom", "dog,police car;squad car")
    written = run_demo(cfg, [pictures[0], film], tmp_path / "drawn", words, 0.0)
    assert [path.suffix for path in written] == [".png", ".mp4"]
    assert read_annotations(tmp_path / "drawn")


def test_references_are_read_with_and_without_a_box() -> None:
    assert parse_reference("dog=a b.jpg") == ("dog", "a b.jpg")
    assert parse_reference("dog=me@home.jpg@1,2,3.5,4") == (
        "dog",
        ("me@home.jpg", (1.0, 2.0, 3.5, 4.0)),
    )
    for text in ("a.jpg", "=a.jpg", "dog=", "dog=a.jpg@1,2,x,4"):
        with pytest.raises(ValueError, match="is no NAME=PICTURE"):
            parse_reference(text)


def test_thresholds_are_read() -> None:
    assert parse_threshold("police car=0.4") == ("police car", 0.4)
    with pytest.raises(ValueError, match="is no NAME=SCORE"):
        parse_threshold("police car")


class Recorder(SimpleNamespace):
    prompts = None

    def set_classes(self, classes, negative=()) -> None:
        self.asked = (classes, negative)


def test_wishes_become_prompts() -> None:
    predictor = Recorder()
    words = parse_classes(["dog;puppy", "owl"])
    wished = Wishes(
        negative=["toy"],
        references=[("dog", "a.jpg"), ("mine", "b.jpg")],
        thresholds=[("owl", 0.4)],
    )
    set_wished_classes(predictor, words, wished)
    (dog, owl, mine), negative = predictor.asked
    assert (dog.name, dog.references, dog.words) == ("dog;puppy", ("a.jpg",), True)
    assert (owl.references, owl.min_score) == ((), 0.4)
    assert (mine.name, mine.words) == ("mine", False)
    assert negative == ["toy"]
    set_wished_classes(predictor, words, Wishes())
    assert predictor.asked == (words, ())


def test_wishes_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no class; give"):
        set_wished_classes(Recorder(), None, Wishes())
    with pytest.raises(ValueError, match=r"names \['cat'\], but the classes are \['dog'\]"):
        set_wished_classes(Recorder(), parse_classes(["dog"]), Wishes(thresholds=[("cat", 0.1)]))
    novel = Vocabulary.from_names(["dog", "owl"], novel=["owl"])
    with pytest.raises(ValueError, match="go with --vocabulary custom"):
        set_wished_classes(Recorder(), novel, Wishes(thresholds=[("owl", 0.1)]))


def test_a_saved_set_stands_for_the_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predictor = Recorder()
    monkeypatch.setattr(demo.PromptSet, "load", lambda path: f"set of {path.name}")
    set_wished_classes(predictor, None, Wishes(load_classes=tmp_path / "pets.safetensors"))
    assert predictor.asked == ("set of pets.safetensors", ())
