"""Pictures of a detector's predictions and dense maps in TensorBoard, while it trains."""

from itertools import islice

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from torch import Tensor, nn

from clipself_d2.engine.accumulation import unwrap
from clipself_d2.engine.evaluate import vocabulary_of
from clipself_d2.layers.text_classifier import TextClassifier

# Of a picture so many detections are drawn, those of the highest scores.
_MOST_BOXES = 10


class ValidationPictures(HookBase):
    """Draws the first TEST.PICTURES of the first test set every TEST.EVAL_PERIOD iterations."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def after_step(self) -> None:
        """Draw, in the iterations that are followed by an evaluation."""
        if (self.trainer.iter + 1) % self.cfg.TEST.EVAL_PERIOD:
            return
        name = self.cfg.DATASETS.TEST[0]
        model = unwrap(self.trainer._trainer.model)
        loader = self.trainer.build_test_loader(self.cfg, name)
        mode = model.training
        model.eval()
        try:
            with torch.no_grad(), vocabulary_of(self.cfg, model, name):
                items = [item for batch in islice(loader, self.cfg.TEST.PICTURES) for item in batch]
                for number, item in enumerate(items[: self.cfg.TEST.PICTURES]):
                    self._put(model, item, number, MetadataCatalog.get(name).thing_classes)
        finally:
            model.train(mode)

    def _put(self, model: nn.Module, item: dict, number: int, names: list[str]) -> None:
        image = item["image"]
        # In pixels of the picture that the model saw.
        output = model([{"image": image}])[0]
        if "instances" not in output:
            return
        found = output["instances"].to("cpu")
        found = found[found.scores.argsort(descending=True)[:_MOST_BOXES]]
        drawer = Visualizer(
            convert_image_to_rgb(image.permute(1, 2, 0), self.cfg.INPUT.FORMAT), scale=2.0
        )
        pairs = zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
        labels = [f"{names[place]} {score:.0%}" for place, score in pairs]
        drawn = drawer.overlay_instances(boxes=found.pred_boxes, labels=labels).get_image()
        storage = self.trainer.storage
        storage.put_image(f"predictions/{number}", torch.from_numpy(drawn.copy()).permute(2, 0, 1))
        heat = heat_map(model, image, found)
        if heat is not None:
            storage.put_image(f"heat_map/{number}", heat)


def heat_map(model: nn.Module, image: Tensor, found: Instances) -> Tensor | None:
    """Compare the dense map with the class of the best of the detections.

    (1, h, w) float32, 0 at the least and 1 at the largest cosine; None where the backbone has no
    feature ``clip``, there is no text classifier, or nothing was found.
    """
    classifiers = [part for part in model.modules() if isinstance(part, TextClassifier)]
    backbone = getattr(model, "backbone", None)
    if not classifiers or not len(found) or "clip" not in getattr(backbone, "_out_features", ()):
        return None
    pixels = model.preprocess_image([{"image": image}])  # type: ignore[operator]
    dense = backbone(pixels.tensor)["clip"][0]  # type: ignore[misc]
    text = classifiers[0].embeddings_KD[found.pred_classes[0]]
    cosines = torch.einsum("dhw,d->hw", dense.float(), text)
    # A map of one value has no spread to divide by.
    spread = (cosines.max() - cosines.min()).clamp(min=1e-6)
    return ((cosines - cosines.min()) / spread)[None].cpu()
