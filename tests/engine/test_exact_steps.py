import os

import numpy as np
import pytest
import torch

from clipself_d2.data.datasets.refcoco import register_emoji_refer
from clipself_d2.engine.accumulation import unwrap
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.trainer import Trainer

DRAWN = ("INPUT.LSJ_SIZE", 96)


def run(kind, cfg, resume: bool = False):
    cfg.freeze()
    torch.manual_seed(cfg.SEED)
    trainer = kind(cfg)
    # What happened before a run began, or goes on, is not its business.
    np.random.seed(int(resume))
    torch.rand(3 * resume)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    model = unwrap(trainer._trainer.model)
    return getattr(model, "student", model).state_dict()


@pytest.mark.parametrize(
    ("kind", "recipe", "keys"),
    [
        (Trainer, "fvit_untouched", DRAWN),
        (Trainer, "fvit_untouched", ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")),
        (Trainer, "fvit_untouched", ("SOLVER.ACCUMULATION_STEPS", 2)),
        (Trainer, "fcos", DRAWN),
        (Trainer, "retinanet", DRAWN),
        (Trainer, "cris", ("MODEL.CRIS.DROPOUT", 0.5, "DATASETS.TRAIN", ("tiny_refer_train",))),
        (
            DistillTrainer,
            "clipself_patches",
            ("MODEL.CLIP.DROP_PATH", 0.5, "MODEL.DISTILL.STUDENT_SHARE", 0.7),
        ),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    emoji_cfg, emoji_data, catalogs, tmp_path, kind, recipe, keys
) -> None:
    common = (*keys, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 3)
    if recipe == "cris":
        register_emoji_refer(emoji_data, prefix="tiny")
    whole = run(kind, emoji_cfg(recipe, *common, "OUTPUT_DIR", str(tmp_path / "a")))
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a" / "model_0000001.pth", tmp_path / "b" / "model_0000001.pth")
    (tmp_path / "b" / "last_checkpoint").write_text("model_0000001.pth")
    resumed = run(kind, emoji_cfg(recipe, *common, "OUTPUT_DIR", str(tmp_path / "b")), resume=True)
    half = torch.load(tmp_path / "a" / "model_0000001.pth", weights_only=True)["model"]
    assert any(not torch.equal(half[key], whole[key]) for key in half.keys() & whole.keys())
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
