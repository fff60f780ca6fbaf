"""Detectron2's own train_net with one more line, ``import clipself_d2``: what it does, said anew.

It takes ``get_cfg`` as it is, builds ``DefaultTrainer``, and chooses evaluators by
``evaluator_type`` among Detectron2's.
"""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import Tensor

import clipself_d2  # noqa: F401

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OVERRIDES = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2]
OVERRIDES += ["DATALOADER.NUM_WORKERS", 0]


class PlainTrainer(DefaultTrainer):
    """Knows the evaluators of COCO's boxes alone."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        if MetadataCatalog.get(dataset_name).evaluator_type != "coco":
            raise NotImplementedError(dataset_name)
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)


def train(name: str, output: Path, *overrides: object) -> PlainTrainer:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.merge_from_list([*OVERRIDES, "OUTPUT_DIR", str(output), *overrides])
    output.mkdir()
    trainer = PlainTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["emoji/fvit_untouched.yaml", "emoji/rpn.yaml"])
def test_detector_trains_and_the_other_clipping_is_said(emoji_data, tmp_path, caplog, name):
    with caplog.at_level(logging.WARNING):
        trainer = train(name, tmp_path / "out")
    assert "full_model is that of this project's tools/train_net.py" in caplog.text
    assert trainer.iter == 2
    state = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


def test_other_wrong_clippings_are_refused_as_before(emoji_data, tmp_path):
    with pytest.raises(ValueError, match="'whole' is not a valid GradientClipType"):
        train("emoji/rpn.yaml", tmp_path / "out", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "whole")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("emoji/clipself_patches.yaml", "CLIPSelfDistiller is given pictures without boxes"),
        ("emoji/cris.yaml", "CRIS is given pictures without sentence"),
    ],
)
def test_model_of_another_loader_says_which_tool_it_needs(emoji_data, tmp_path, name, complaint):
    # Detectron2's mapper asks for boxes or none, and the data set of CRIS has masks of its own.
    overrides = ["DATASETS.TRAIN", ("emoji_ov_train",), "DATASETS.TEST", ()]
    overrides += ["MODEL.CLIP.WEIGHTS", ""]
    with pytest.raises(ValueError, match=f"{complaint}.*own loaders do not add them: run it by"):
        train(name, tmp_path / "out", *overrides)


def plug_in_detector() -> torch.nn.Module:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / "plug_in" / "faster_rcnn_fpn.yaml"))
    model: torch.nn.Module = build_model(cfg).eval()
    return model


@pytest.mark.slow
def test_trace_gives_the_same_boxes_for_pictures_of_other_sizes():
    def detect(model: torch.nn.Module, inputs: list[dict]) -> list[dict]:
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

    model, generator = plug_in_detector(), torch.Generator().manual_seed(0)
    pictures = [255 * torch.rand(3, *size, generator=generator) for size in ((144, 160), (96, 192))]
    with torch.no_grad():
        adapter = TracingAdapter(model, [{"image": pictures[0]}], detect)
        traced = torch.jit.trace(adapter, (pictures[0],))
        for picture in pictures:
            expected = model.inference([{"image": picture}], do_postprocess=False)[0]
            assert len(expected) > 0
            torch.testing.assert_close(traced(picture)[0], expected.pred_boxes.tensor)


@pytest.mark.slow
def test_scripting_is_refused_by_torch_in_its_own_words():
    """Whose kind depends on what was compiled before."""
    fields = {"proposal_boxes": Boxes, "objectness_logits": Tensor}
    fields |= {"pred_boxes": Boxes, "scores": Tensor, "pred_classes": Tensor}
    with pytest.raises((ValueError, AssertionError, RuntimeError), match="type"):
        scripting_with_instances(plug_in_detector(), fields)
