"""Training-free segmentation: every pixel takes the class nearest to its cell, in each dense form.

Legend: K classes, D joint embedding, h w patch grid, H W pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from clipself_d2.apps.analysis.heat_maps import dense_map, similarity_maps
from clipself_d2.apps.analysis.tower_spec import TowerSpec, choose_device
from clipself_d2.clip import VisionTower
from clipself_d2.clip.towers.tokens import TokenTower
from clipself_d2.clip.vision_model import VisionModel
from clipself_d2.data.pictures import fit_longest, read_picture
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.parts.metadata import SEGMENT_TYPES
from clipself_d2.parts.text_embeddings import semantic_vocabulary

METRICS = ("mIoU", "mIoU_stuff", "mIoU_thing", "pACC")


def score_forms(
    dataset: str,
    specs: Sequence[TowerSpec],
    forms: Sequence[str],
    *,
    size: int = 0,
    limit: int = 0,
    templates: str = "",
    device: str = "",
    proxy: str = "",
) -> dict[tuple[str, str], dict[str, float]]:
    """Segment a data set with the dense map of every tower in every form.

    Args:
        dataset: Registered data set of label maps with things and stuff.
        specs: The towers.
        forms: Names of dense forms.
        size: Longest side of the towers' input, px; 0 keeps the pictures'.
        limit: Number of pictures, the first of the data set; 0 takes all.
        templates: Prompt set; "" takes that of each CLIP.
        device: Where the towers work; "" is the accelerator of this machine, or its CPU.
        proxy: NAME[:FILE] of the vision model whose affinity ``proxyclip`` reads.

    Returns:
        ``METRICS`` in percent by label of the tower and name of the form.
    """
    names = semantic_vocabulary(dataset, "--dataset").names
    if MetadataCatalog.get(dataset).get("evaluator_type") not in SEGMENT_TYPES:
        raise ValueError(
            f"--dataset {dataset} has no evaluator_type of {', '.join(SEGMENT_TYPES)}; take one "
            "with label maps of things and stuff, such as emoji_ov_sem_seg_val"
        )
    records = DatasetCatalog.get(dataset)[: limit or None]
    place = choose_device(device)
    scores = {}
    for spec in specs:
        tower = spec.load(device=place)
        if proxy:
            _set_proxy(tower, proxy, place)
        text_KD = spec.embed(names, templates=templates, device=place).embeddings_KD
        # All forms at once, so that every picture is read once.
        evaluators = {form: build_evaluator(dataset, None) for form in forms}
        for record in tqdm(records, desc=spec.label, mininterval=1.0):
            picture = read_picture(record["file_name"])
            seen = fit_longest(picture, size) if size else picture
            for form, evaluator in evaluators.items():
                maps = similarity_maps(dense_map(tower, seen, form), text_KD)
                output = spread_over(picture, maps, tower.patch_size, seen)
                evaluator.process([record], [{"sem_seg": output}])
        for form, evaluator in evaluators.items():
            scores[spec.label, form] = (evaluator.evaluate() or {})["sem_seg"]
    return scores


def spread_over(picture: Image.Image, maps_Khw: Tensor, patch: int, seen: Image.Image) -> Tensor:
    """Enlarge maps of a tower, which has seen a picture in another size, to (K, H, W)."""
    pixels = [patch * length for length in maps_Khw.shape[1:]]
    enlarged = F.interpolate(maps_Khw[None], pixels, mode="bilinear")
    # What the padding of the last cells shows is no pixel of the picture.
    cut = enlarged[..., : seen.height, : seen.width]
    return F.interpolate(cut, (picture.height, picture.width), mode="bilinear")[0]


def _set_proxy(tower: VisionTower, proxy: str, device: torch.device) -> None:
    name, _, file = proxy.partition(":")
    if isinstance(tower, TokenTower):  # other towers have no form that reads one
        tower.proxy = VisionModel(name, file).to(device).forward


def form_table(scores: dict[tuple[str, str], dict[str, float]]) -> str:
    """Lay scores out: a Markdown table with a line for each tower and form."""
    rows = [
        [*key, *(found.get(metric, float("nan")) for metric in METRICS)]
        for key, found in scores.items()
    ]
    headers = ("tower", "form", *METRICS)
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=".1f")
