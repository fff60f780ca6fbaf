"""Search in a folder of pictures: embeddings of regions, asked by words or by pictures.

Legend: R regions, Q questions, D joint embedding.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.ops import nms

from clipself_d2.apps.predict.demo import draw
from clipself_d2.apps.predict.encoded import EncodedPicture, dense_map, embed_boxes
from clipself_d2.apps.predict.media import find_inputs, is_video
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.prompts import parse_typed_classes
from clipself_d2.apps.predict.references import embed_references
from clipself_d2.data.pictures import fit_longest, read_picture
from clipself_d2.parts.image_tower import load_original_tower
from clipself_d2.parts.json_file import write_json
from clipself_d2.parts.text_embeddings import read_text_embeddings
from clipself_d2_cli.flags import user_path

logger = logging.getLogger(__name__)

ARRAYS_FILE, PICTURES_FILE = "regions.safetensors", "pictures.json"
# Proposals that overlap more than this are one region.
_SAME_REGION = 0.7
# Side of a panel of the sheet of answers, px, and panels in a row.
_PANEL, _COLUMNS = 240, 5


@dataclass(frozen=True)
class RegionIndex:
    """Regions of many pictures.

    Attributes:
        files: The pictures.
        clip: Name of the CLIP whose text and pictures can be compared.
        picture_R: (R,) int64 number of every region's picture.
        boxes_R4: (R, 4) XYXY px; the first of every picture is the whole of it.
        embeddings_RD: (R, D) float32, unit norm.
    """

    files: tuple[str, ...]
    clip: str
    picture_R: Tensor
    boxes_R4: Tensor
    embeddings_RD: Tensor

    def save(self, folder: Path) -> None:
        """Write ``regions.safetensors`` (embeddings in half precision) and ``pictures.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "picture": self.picture_R,
            "boxes": self.boxes_R4,
            "embeddings": self.embeddings_RD.half(),
        }
        save_file(arrays, str(folder / ARRAYS_FILE))
        write_json(folder / PICTURES_FILE, {"clip": self.clip, "files": self.files}, indent=1)

    @classmethod
    def load(cls, folder: Path) -> "RegionIndex":
        """Read an index that ``save`` wrote."""
        if not (folder / ARRAYS_FILE).is_file() or not (folder / PICTURES_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} holds no index; make one with --input FOLDER --index {folder}"
            )
        try:
            content = json.loads((folder / PICTURES_FILE).read_text())
            arrays = load_file(str(folder / ARRAYS_FILE))
            # Half precision has lost the unit norm.
            rows = F.normalize(arrays["embeddings"].float(), dim=1)
            files = tuple(content["files"])
            return cls(files, content["clip"], arrays["picture"], arrays["boxes"], rows)
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"the index in {folder} is damaged ({error}); make it anew") from error

    def ask(self, question_QD: Tensor, count: int) -> list[list[dict[str, Any]]]:
        """Find the regions that are most like questions, the best of a picture each.

        Returns:
            For each question at most ``count`` rows of ``file``, ``box`` (XYXY px) and ``score``
            (cosine), best first.
        """
        cosine_QR = question_QD @ self.embeddings_RD.T
        answers = []
        for scores in cosine_QR:
            # -2 is below every cosine.
            best = torch.full((len(self.files),), -2.0)
            best.scatter_reduce_(0, self.picture_R, scores, "amax")
            rows = []
            for number in best.topk(min(count, len(best))).indices.tolist():
                region = int(torch.where(self.picture_R == number, scores, -2.0).argmax())
                box = [round(side, 1) for side in self.boxes_R4[region].tolist()]
                row = {"file": self.files[number], "box": box, "score": float(scores[region])}
                rows.append(row)
            answers.append(rows)
        return answers


@torch.no_grad()
def build_index(
    predictor: OpenVocabPredictor, inputs: Sequence[str | Path], regions: int
) -> RegionIndex:
    """Embed the whole and at most ``regions`` proposals of many pictures; no words are needed.

    The predictor's detector has a proposal network and a dense CLIP map.
    """
    if not hasattr(predictor.model, "proposal_generator"):
        raise ValueError(
            f"{type(predictor.model).__name__} proposes no regions; take a detector with a "
            "proposal network, such as configs/emoji/fvit_clipself.yaml"
        )
    files = [path for path in find_inputs(inputs) if not is_video(path)]
    if not files:
        raise ValueError("there is no picture to search in; give --input a folder with pictures")
    pictures, boxes, rows = [], [], []
    for number, path in enumerate(files):
        found = _propose(predictor, predictor.encode(path), regions)
        pictures.append(torch.full((len(found),), number))
        boxes.append(found.pred_boxes.tensor)
        rows.append(found.embeddings)
        if (number + 1) % 100 == 0:
            logger.info("%d of %d pictures", number + 1, len(files))
    return RegionIndex(
        tuple(str(path) for path in files),
        predictor.cfg.MODEL.CLIP.NAME,
        torch.cat(pictures),
        torch.cat(boxes),
        torch.cat(rows),
    )


def embed_questions(cfg: CfgNode, words: str, pictures: Sequence[str]) -> tuple[list[str], Tensor]:
    """Embed what is searched for: what each question is called, and (Q, D) of unit norm.

    Words stand between commas, synonyms behind semicolons; every picture is a question.
    """
    names: list[str] = []
    rows: list[Tensor] = []
    if words.strip(" ,;"):
        vocabulary = parse_typed_classes(words)
        names += vocabulary.names
        embedded = read_text_embeddings(cfg, vocabulary, same_names=False)
        rows.append(embedded.embeddings_KD)
    if pictures:
        tower = load_original_tower(cfg)
        files = [user_path(picture) for picture in pictures]
        names += [file.name for file in files]
        rows.append(embed_references(tower, files, lambda file: np.asarray(read_picture(file))))
    if not rows:
        raise ValueError("there is nothing to search for; give --words or --picture")
    return names, torch.cat(rows)


def draw_answers(name: str, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the answers to one question, rows of ``RegionIndex.ask``, on one sheet."""
    height = -(-len(rows) // _COLUMNS) * _PANEL
    sheet = Image.new("RGB", (_COLUMNS * _PANEL, height), (24, 24, 24))
    for number, row in enumerate(rows):
        image = np.asarray(read_picture(row["file"]))
        found = Instances(
            image.shape[:2],
            pred_boxes=Boxes(torch.tensor([row["box"]])),
            scores=torch.tensor([row["score"]]),
            pred_classes=torch.tensor([0]),
        )
        panel = fit_longest(Image.fromarray(draw(image, found, [name])), _PANEL)
        sheet.paste(panel, (number % _COLUMNS * _PANEL, number // _COLUMNS * _PANEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _propose(predictor: OpenVocabPredictor, picture: EncodedPicture, count: int) -> Instances:
    """The whole picture and the best proposals, with ``pred_boxes`` and ``embeddings``."""
    model: Any = predictor.model
    item = predictor.prepare(picture)
    images = model.preprocess_image([item])
    features = model.backbone(images.tensor)
    dense, stride = dense_map(model, features)
    (found,), _ = model.proposal_generator(images, features)
    chosen = nms(found.proposal_boxes.tensor, found.objectness_logits, _SAME_REGION)[:count]
    height, width = images.image_sizes[0]
    boxes = found.proposal_boxes.tensor[chosen]
    boxes = torch.cat([boxes.new_tensor([[0, 0, width, height]]), boxes])
    regions = Instances((item["height"], item["width"]), pred_boxes=Boxes(boxes))
    regions.embeddings = embed_boxes(dense[0], stride, boxes, (1.0, 1.0))
    # Embedded in the input's pixels, kept in the picture's.
    regions.pred_boxes.scale(item["width"] / width, item["height"] / height)
    return regions.to("cpu")


def run_search(
    cfg: CfgNode,
    index_folder: Path,
    *,
    inputs: Sequence[str],
    regions: int,
    words: str,
    pictures: Sequence[str],
    count: int,
    output: Path | None,
) -> dict[str, list[dict[str, Any]]]:
    """Build an index where there are inputs, and answer where there are questions.

    Args:
        cfg: The whole config; MODEL.WEIGHTS is needed to build.
        index_folder: Folder of the index.
        inputs: Pictures, folders and patterns; () asks the index that is there.
        regions: As of ``build_index``.
        words: As of ``embed_questions``.
        pictures: Likewise.
        count: Most answers to a question.
        output: Folder of ``answers.json`` and of a png for each question; None only logs.

    Returns:
        Answers as of ``RegionIndex.ask``, by the name of the question.
    """
    asked = bool(words.strip(" ,;") or pictures)
    if not inputs and not asked:
        raise ValueError("there is nothing to do; give --input, or --words or --picture")
    if inputs:
        index = build_index(OpenVocabPredictor(cfg), inputs, regions)
        index.save(index_folder)
        logger.info(
            "%s: %d regions of %d pictures", index_folder, len(index.picture_R), len(index.files)
        )
    if not asked:
        return {}
    index = RegionIndex.load(index_folder)
    if index.clip != cfg.MODEL.CLIP.NAME:
        raise ValueError(
            f"the index in {index_folder} was made with {index.clip}, but MODEL.CLIP.NAME is "
            f"{cfg.MODEL.CLIP.NAME}; take the config of the index"
        )
    names, question_QD = embed_questions(cfg, words, pictures)
    answers = dict(zip(names, index.ask(question_QD, count), strict=True))
    for number, (name, rows) in enumerate(answers.items()):
        shown = ", ".join(f"{Path(row['file']).name} {row['score']:.2f}" for row in rows[:5])
        logger.info("%s: %s", name, shown)
        if output is not None:
            draw_answers(name, rows, output / f"answer_{number}.png")
    if output is not None:
        write_json(output / "answers.json", answers, indent=1)
    return answers
