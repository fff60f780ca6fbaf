"""Detection on pictures, videos and cameras with classes that the user types."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from clipself_d2.apps.files.text_embeddings import resolve_vocabulary
from clipself_d2.apps.predict.detection_file import DetectionFile
from clipself_d2.apps.predict.detector_source import Config
from clipself_d2.apps.predict.media import (
    batches,
    check_readable,
    find_inputs,
    frame_rate,
    is_video,
    open_film,
    read_frames,
    write_film,
)
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.prompts import ClassPrompt, PromptSet, parse_typed_classes
from clipself_d2.apps.predict.segments import (
    PanopticFile,
    class_shade,
    draw_segments,
    make_labels,
    segments_of,
)
from clipself_d2.apps.predict.slices import SlicePlan
from clipself_d2.data.pictures import read_picture
from clipself_d2.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Pictures are drawn at least this wide, px, so that labels can be read.
DRAWN_WIDTH = 640
# All detections, in the output folder.
DETECTIONS_FILE = "detections.json"
# Embeddings of them, in their order.
EMBEDDINGS_FILE = "embeddings.safetensors"


@dataclass(frozen=True)
class Wishes:
    """What is asked for beside the classes.

    Attributes:
        negative: Words scored and never reported.
        references: Pairs of a class and a picture, or a picture and its box. A class that the
            vocabulary has not is added, known by its references alone.
        thresholds: Pairs of a class and its least score.
        load_classes: File of a saved set, in place of all these; None for none.
        save_classes: File to save the set to.
        slices: How large pictures are cut.
        embeddings: Whether embeddings of the detections are written.
    """

    negative: Sequence[str] = ()
    references: Sequence[tuple[str, Any]] = ()
    thresholds: Sequence[tuple[str, float]] = ()
    load_classes: Path | None = None
    save_classes: Path | None = None
    slices: SlicePlan | None = None
    embeddings: bool = False


def choose_vocabulary(kind: str, custom: str) -> Vocabulary:
    """Turn the demo's flags into classes.

    Args:
        kind: "custom", a registered data set, or a file of names.
        custom: For "custom": classes between commas, synonyms of a class behind semicolons, as in
            "dog,police car;squad car;patrol car" of two classes.
    """
    if kind == "custom":
        if not custom.strip(" ,;"):
            raise ValueError(
                '--custom-vocabulary is empty; give names between commas, such as "police car,dog"'
            )
        return parse_typed_classes(custom)
    if custom.strip():
        raise ValueError(
            f"--custom-vocabulary {custom!r} goes with --vocabulary custom, not {kind}; drop one"
        )
    return resolve_vocabulary(kind, "custom, a registered data set such as emoji_ov_val")


def draw(image: np.ndarray, found: Instances, names: Sequence[str]) -> np.ndarray:
    """Draw detections on an (H, W, 3) uint8 RGB picture, every class in a colour of its own.

    Small pictures are enlarged. ``found`` may have ``pred_masks``.
    """
    found = found.to("cpu")
    drawer = Visualizer(image, scale=max(1.0, DRAWN_WIDTH / image.shape[1]))
    drawer.overlay_instances(
        boxes=found.pred_boxes,
        masks=found.pred_masks.numpy() if found.has("pred_masks") else None,
        labels=make_labels(found, names),
        assigned_colors=[class_shade(number) for number in found.pred_classes.tolist()],
    )
    return drawer.get_output().get_image()


def run_demo(
    cfg: Config,
    inputs: Iterable[str | Path],
    output_dir: Path,
    vocabulary: Vocabulary | None,
    min_score: float,
    *,
    webcam: int | None = None,
    batch_size: int = 4,
    max_frames: int = 0,
    wishes: Wishes | None = None,
) -> list[Path]:
    """Detect the classes of a vocabulary, draw the boxes, and list all of them in one file.

    Inputs, options and the model are checked before anything is written.

    Args:
        cfg: The whole config; MODEL.WEIGHTS is the detector, of a LazyConfig
            ``train.init_checkpoint``.
        inputs: Pictures, videos, folders and patterns, as ``find_inputs`` reads them.
        output_dir: Folder for the results: a png for every picture and an mp4 for every video,
            named as they are, and ``detections.json`` of COCO's form; of a model that segments,
            ``panoptic.json`` and the maps in ``panoptic/``.
        vocabulary: The classes; None where ``wishes`` name a saved set.
        min_score: Least score kept, in [0, 1].
        webcam: Number of a camera that is read after the inputs, until ``max_frames`` or a keyboard
            interrupt.
        batch_size: Most pictures or frames at once.
        max_frames: Most frames of each video; 0 for all.
        wishes: What is asked for beside the classes.

    Returns:
        Pictures and videos written.
    """
    sources: list[Path | int] = [*find_inputs(list(inputs))]
    sources += [] if webcam is None else [webcam]
    check_readable(sources)
    predictor = OpenVocabPredictor(cfg, min_score=min_score, batch_size=batch_size)
    wishes = wishes or Wishes()
    set_wished_classes(predictor, vocabulary, wishes)
    output_dir.mkdir(parents=True, exist_ok=True)
    session = _Session(predictor, min_score, output_dir, wishes)
    films = [source for source in sources if is_video(source)]
    pictures = [source for source in sources if not is_video(source)]
    try:
        for batch in batches(pictures, batch_size):
            session.add_pictures(batch)
        for film in films:
            session.add_film(film, max_frames)
    finally:
        if session.segments.images:
            logger.info("%s: segments", session.segments.save())
        if session.embeddings:
            rows = {"embeddings": torch.cat(session.embeddings)}
            save_file(rows, str(output_dir / EMBEDDINGS_FILE))
        path = output_dir / DETECTIONS_FILE
        session.file.save(path)
        logger.info(
            "%s: %d detections on %d pictures",
            path,
            len(session.file.annotations),
            len(session.file.images),
        )
    return session.written


class _Session:
    """Detects, draws and collects, input by input."""

    def __init__(
        self, predictor: OpenVocabPredictor, min_score: float, output_dir: Path, wishes: Wishes
    ) -> None:
        self.predictor = predictor
        self.options: Any = {"slices": wishes.slices, "embeddings": wishes.embeddings}
        self.embeddings: list[Tensor] = []
        self.names = predictor.names
        self.min_score = min_score
        self.output_dir = output_dir
        self.file = DetectionFile(predictor.names)
        self.segments = PanopticFile(output_dir, predictor.names, predictor.thing_mask)
        self.written: list[Path] = []

    def add_pictures(self, paths: Sequence[Path]) -> None:
        images = [np.asarray(read_picture(path)) for path in paths]
        outputs = self.predictor.detect_all(images, [str(path) for path in paths], **self.options)
        for path, image, output in zip(paths, images, outputs, strict=True):
            target = self._target(path.stem, ".png")
            drawn, labels = self._take(image, output, str(path), target.stem)
            Image.fromarray(drawn).save(target)
            shown = ", ".join(self.names[number] for number in labels)
            logger.info("%s: %s", target, shown or "nothing found")
            self.written.append(target)

    def add_film(self, source: Path | int, max_frames: int) -> None:
        name = f"webcam{source}" if isinstance(source, int) else str(source)
        target = self._target(Path(name).stem, ".mp4")
        counts: Counter[str] = Counter()
        number = 0
        # A camera has no end: it is stopped from the keyboard.
        stop = (KeyboardInterrupt,) if isinstance(source, int) else ()
        with (
            open_film(source) as film,
            write_film(target, frame_rate(film)) as add,
            contextlib.suppress(*stop),
        ):
            for frames in batches(read_frames(film, max_frames), self.predictor.batch_size):
                outputs = self.predictor.detect_all(frames, **self.options)
                for frame, output in zip(frames, outputs, strict=True):
                    found = self._instances(output)
                    add(draw(frame, found, self.names))
                    self.file.add(name, found, frame=number)
                    counts.update(self.names[label] for label in found.pred_classes)
                    number += 1
        if not number:
            raise ValueError(f"video {name} has no frame that can be decoded; replace the file")
        shown = ", ".join(f"{label} {count}" for label, count in counts.most_common())
        logger.info("%s: %d frames, %s", target, number, shown or "nothing found")
        self.written.append(target)

    def _take(
        self, image: np.ndarray, output: dict[str, Any], source: str, name: str
    ) -> tuple[np.ndarray, list[int]]:
        """Draw and keep what a model says of a picture: its segments, or else its instances."""
        segmented = segments_of(output)
        if segmented is None:
            found = self._instances(output)
            self.file.add(source, found)
            return draw(image, found, self.names), found.pred_classes.tolist()
        ids, rows = segmented
        rows = [row for row in rows if row.get("score", 1.0) >= self.min_score]
        ids[~np.isin(ids, [row["id"] for row in rows])] = 0
        self.segments.add(source, name, ids, rows)
        return draw_segments(image, ids, rows, self.names), [row["category_id"] for row in rows]

    def _instances(self, output: dict[str, Any]) -> Instances:
        if "instances" not in output:
            raise ValueError(
                f"{type(self.predictor.model).__name__} gives {', '.join(output)} and no "
                "instances; videos need a detector"
            )
        instances: Instances = output["instances"]
        if instances.has("embeddings"):
            self.embeddings.append(instances.embeddings.cpu())
        return instances

    def _target(self, stem: str, suffix: str) -> Path:
        taken = {path.stem for path in self.written if path.suffix == suffix}
        return self.output_dir / f"{new_name(stem, taken)}{suffix}"


def new_name(stem: str, taken: set[str]) -> str:
    """Find a name that no earlier input has: those of several folders may share one.

    It is ``stem``, where needed with a number behind it, and is added to ``taken``.
    """
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    taken.add(name)
    return name


def set_wished_classes(
    predictor: OpenVocabPredictor, vocabulary: Vocabulary | None, wishes: Wishes
) -> None:
    """Give a predictor its classes: those of the words, if any, and of the wishes beside them."""
    if wishes.load_classes is not None:
        predictor.set_classes(PromptSet.load(wishes.load_classes))
        return
    if wishes.references or wishes.thresholds:
        predictor.set_classes(_prompts(vocabulary, wishes), wishes.negative)
    elif vocabulary is None:
        raise ValueError("there is no class; give --custom-vocabulary, --reference or --classes")
    else:
        predictor.set_classes(vocabulary, wishes.negative)
    if wishes.save_classes is not None and predictor.prompts is not None:
        predictor.prompts.save(wishes.save_classes)


def _prompts(vocabulary: Vocabulary | None, wishes: Wishes) -> list[ClassPrompt]:
    words = {} if vocabulary is None else {group[0]: ";".join(group) for group in vocabulary.words}
    if vocabulary is not None and not all(vocabulary.base_mask):
        raise ValueError(
            "--reference and --class-threshold go with --vocabulary custom or a file of names, not "
            "with a data set that has novel classes"
        )
    names = list(dict.fromkeys([*words, *(name for name, _ in wishes.references)]))
    scores = dict(wishes.thresholds)
    unknown = sorted(set(scores) - set(names))
    if unknown:
        raise ValueError(f"--class-threshold names {unknown}, but the classes are {names[:10]}")
    return [
        ClassPrompt(
            words.get(name, name),
            tuple(reference for known, reference in wishes.references if known == name),
            words=name in words,
            min_score=scores.get(name),
        )
        for name in names
    ]


def parse_reference(text: str) -> tuple[str, Any]:
    """Read ``NAME=PICTURE`` or ``NAME=PICTURE@left,top,right,bottom``: class and reference."""
    name, _, picture = (part.strip() for part in text.partition("="))
    file, _, corners = picture.rpartition("@") if picture.count(",") == 3 else (picture, "", "")
    try:
        box = tuple(float(side) for side in corners.split(",")) if corners else None
    except ValueError:
        file = ""
    if not (name and file):
        raise ValueError(
            f"--reference {text!r} is no NAME=PICTURE or NAME=PICTURE@left,top,right,bottom"
        )
    return name, file if box is None else (file, box)


def parse_threshold(text: str) -> tuple[str, float]:
    """Read ``NAME=SCORE``."""
    name, _, score = (part.strip() for part in text.rpartition("="))
    try:
        return name, float(score)
    except ValueError:
        raise ValueError(f"--class-threshold {text!r} is no NAME=SCORE, such as dog=0.4") from None
