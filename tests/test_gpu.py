"""On a GPU every recipe learns as on the CPU, and so do compiled and recorded passes.

`bash tools/test.sh -m gpu` runs them where there is one.
"""

import pytest
import torch

from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.data.datasets.refcoco import register_emoji_refer
from clipself_d2.engine.accumulation import unwrap
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

DISTILLERS = ("clipself_patches", "declip", "denserc", "region_text", "sc_clipself", "synclip")
DETECTORS = ("fvit_untouched", "fvit_masks", "cascade", "retinanet", "fcos", "rpn")
SEGMENTERS = ("catseg_untouched", "ov_panoptic_untouched", "cris")


@pytest.fixture(autouse=True)
def one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 on both devices."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def train(cfg, device: str) -> tuple[torch.nn.Module, dict[str, float]]:
    """Run a short training; the model, and the losses of its first iteration."""
    cfg.MODEL.DEVICE = device
    # Text is embedded in half precision on a GPU; the file that the CPU wrote is read there.
    cfg.MODEL.VOCABULARY.CACHE_DIR = f"{cfg.OUTPUT_DIR}/../text"
    is_distiller = cfg.MODEL.META_ARCHITECTURE.endswith(("Distiller", "Pretrainer"))
    torch.manual_seed(0)
    trainer = (DistillTrainer if is_distiller else Trainer)(cfg)
    first: dict[str, float] = {}

    def note(_module: object, _inputs: object, losses: dict[str, torch.Tensor]) -> None:
        if not first:
            first.update({name: float(loss) for name, loss in losses.items() if "loss" in name})

    model = unwrap(trainer.model)
    model.register_forward_hook(note)
    trainer.train()
    return model, first


@pytest.mark.parametrize("name", [*DISTILLERS, *DETECTORS, *SEGMENTERS])
def test_the_first_losses_are_those_of_the_cpu(
    emoji_cfg, emoji_root, catalogs, tmp_path, name: str
) -> None:
    register_emoji_refer(emoji_root, prefix="tiny")
    losses = []
    for device in ("cpu", "cuda"):
        keys = ("SOLVER.MAX_ITER", 3, "OUTPUT_DIR", str(tmp_path / device))
        keys += ("MODEL.CLIP.PRETRAINED", "emoji")
        keys += ("DATASETS.TRAIN", ("tiny_refer_train",)) if name == "cris" else ()
        losses.append(train(emoji_cfg(name, *keys), device)[1])
    expected, got = losses
    # A GPU draws other regions, and other points of masks, for the heads to learn from.
    tolerance = 0.02 if name in DISTILLERS else 0.3
    assert got == pytest.approx(expected, rel=tolerance, abs=0.01)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("mode", ["blocks", "step"])
def test_a_compiled_run_learns_what_a_plain_one_does(emoji_cfg, tmp_path, mode, steps) -> None:
    # A pass is recorded in its second run and played from the third on.
    keys = ("SOLVER.MAX_ITER", 6, "SOLVER.ACCUMULATION_STEPS", steps)
    students = []
    for chosen in ("off", mode):
        folder = str(tmp_path / chosen)
        own = ("MODEL.CLIP.COMPILE", chosen, "OUTPUT_DIR", folder, "MODEL.CLIP.PRETRAINED", "emoji")
        model, _ = train(emoji_cfg("clipself_patches", *keys, *own), "cuda")
        assert not model.student.compiler.failed
        assert not model.teacher.compiler.failed
        students.append(model.student.state_dict())
    plain, compiled = students
    start = load_start(emoji_cfg)
    moved = sum(float((plain[name] - start[name].cuda()).norm()) for name in start)
    apart = sum(float((plain[name] - compiled[name]).norm()) for name in start)
    assert apart < 0.05 * moved


def load_start(emoji_cfg) -> dict[str, torch.Tensor]:
    cfg = emoji_cfg("clipself_patches", "MODEL.CLIP.PRETRAINED", "emoji")
    start: dict[str, torch.Tensor] = DistillTrainer.build_model(cfg).student.state_dict()
    return start


@pytest.mark.parametrize("mode", ["off", "blocks", "step"])
@pytest.mark.parametrize("name", ["fvit_clipself", "ov_panoptic_clipself"])
def test_shipped_models_find_what_they_find_on_the_cpu(emoji_cfg, emoji_root, name, mode) -> None:
    keys = ("MODEL.CLIP.PRETRAINED", "emoji", "MODEL.WEIGHTS", f"clipself_d2://emoji/{name}.pth")
    pictures = sorted((emoji_root / "emoji" / "val").glob("*.jpg"))
    best = []
    for device, chosen in (("cpu", "off"), ("cuda", mode)):
        cfg = emoji_cfg(name, *keys, "MODEL.DEVICE", device, "MODEL.CLIP.COMPILE", chosen)
        predictor = OpenVocabPredictor(cfg, min_score=0.01)
        predictor.set_classes(["rabbit", "police car", "sunflower", "grass"])
        # Three times, so that what was recorded is played.
        for _ in range(3):
            found = [each["instances"].to("cpu") for each in predictor.detect_all(pictures)]
        best.append([one[one.scores == one.scores.max()] for one in found if len(one)])
    assert best[0], "the CPU finds something"
    for real, own in zip(*best, strict=True):
        assert own.pred_classes.tolist() == real.pred_classes.tolist()
        torch.testing.assert_close(own.scores, real.scores, atol=0.01, rtol=0)
        torch.testing.assert_close(own.pred_boxes.tensor, real.pred_boxes.tensor, atol=1.0, rtol=0)
