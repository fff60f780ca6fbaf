import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks

from clipself_d2.clip import load_tower
from clipself_d2.data import build as data_build
from clipself_d2.data.distill_mapper import DistillMapper
from clipself_d2.engine.accumulation import unwrap
from clipself_d2.engine.distill_trainer import DistillTrainer, StudentCheckpointer
from clipself_d2.runs.interrupts import Interrupted


def run(cfg, resume: bool = False) -> DistillTrainer:
    cfg.freeze()
    torch.manual_seed(cfg.SEED)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def model_file(cfg, name: str = "model_final.pth") -> dict:
    return torch.load(Path(cfg.OUTPUT_DIR) / name, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocks", "step"])
def test_a_compiled_run_resumes_accumulates_and_checkpoints(emoji_cfg, tmp_path, mode) -> None:
    keys = ("MODEL.CLIP.COMPILE", mode, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 3)
    keys += ("SOLVER.ACCUMULATION_STEPS", 2, "MODEL.CLIP.WINDOW_SIZE", 3)
    keys += ("MODEL.CLIP.ACTIVATION_CHECKPOINTING", mode == "blocks")
    cfg = emoji_cfg("clipself_patches", *keys, "OUTPUT_DIR", str(tmp_path / "a"))
    whole = unwrap(run(cfg).model)
    assert not whole.student.compiler.failed
    assert not whole.teacher.compiler.failed
    (tmp_path / "b").mkdir()
    torch.save(model_file(cfg, "model_0000001.pth"), tmp_path / "b" / "model_0000001.pth")
    (tmp_path / "b" / "last_checkpoint").write_text("model_0000001.pth")
    again = emoji_cfg("clipself_patches", *keys, "OUTPUT_DIR", str(tmp_path / "b"))
    resumed = unwrap(run(again, resume=True).model).student.state_dict()
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed[name]), name
    plain = run(emoji_cfg("clipself_patches", *keys, "MODEL.CLIP.COMPILE", "off"))
    for name, value in unwrap(plain.model).student.state_dict().items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-3)


def test_a_stopped_run_goes_on_to_the_same_bits_and_says_so(emoji_cfg, tmp_path) -> None:
    whole = run(emoji_cfg("clipself_patches", "OUTPUT_DIR", str(tmp_path / "a")))
    cfg = emoji_cfg("clipself_patches", "OUTPUT_DIR", str(tmp_path / "b"))
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=True)

    def stop(loop) -> None:
        if loop.iter == 2:
            signal.raise_signal(signal.SIGTERM)

    trainer.register_hooks([hooks.CallbackHook(before_step=stop)])
    with pytest.raises(Interrupted, match=r"after iteration 1 of 4.*--resume"):
        trainer.train()
    resumed = run(emoji_cfg("clipself_patches", "OUTPUT_DIR", str(tmp_path / "b")), resume=True)
    assert resumed.start_iter == 2
    theirs, ours = whole.model.student.state_dict(), resumed.model.student.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_a_students_other_share_is_listed_on_resume(emoji_cfg, caplog) -> None:
    run(emoji_cfg("clipself_patches"))
    cfg = emoji_cfg("clipself_patches", "MODEL.DISTILL.STUDENT_SHARE", 0.5, "SEED", 8)
    with caplog.at_level("WARNING"):
        DistillTrainer(cfg).resume_or_load(resume=True)
    assert "SEED 7 -> 8" in caplog.text
    assert "MODEL.DISTILL.STUDENT_SHARE 1.0 -> 0.5" in caplog.text


def test_the_checkpoint_is_the_student_and_loads_as_clip_weights(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches")
    trainer = run(cfg)
    weights = model_file(cfg)["model"]
    assert all(key.startswith("visual.") for key in weights)
    tower = load_tower("ViT-Ti-8-emoji", str(Path(cfg.OUTPUT_DIR) / "model_final.pth"))
    student = trainer.model.student.state_dict()
    assert all(torch.equal(value, student[key]) for key, value in tower.state_dict().items())


def test_the_mix_is_saved_and_scored_and_the_student_goes_on_unmixed(emoji_cfg) -> None:
    overrides = ("MODEL.CLIP.PRETRAINED", "emoji", "SOLVER.BASE_LR", 0.01)
    overrides += ("MODEL.DISTILL.STUDENT_SHARE", 0.7, "SOLVER.CHECKPOINT_PERIOD", 2)
    plain = emoji_cfg("clipself_patches", *overrides)
    unscored = run(plain).model.student.state_dict()
    cfg = emoji_cfg("clipself_patches", *overrides, "DATASETS.TEST", ("emoji_panoptic_val",))
    cfg.TEST.EVAL_PERIOD = 2
    trainer = run(cfg)
    student = trainer.model.student.state_dict()
    assert all(torch.equal(value, unscored[key]) for key, value in student.items())
    key = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    teacher = trainer.model.teacher.state_dict()[key]
    saved = model_file(cfg)["model"][key]
    torch.testing.assert_close(saved, 0.7 * student[key] + 0.3 * teacher)
    assert not torch.equal(student[key], teacher)

    file = Path(cfg.OUTPUT_DIR) / "results.json"
    at_the_end = file.read_text()
    file.unlink()
    DistillTrainer.evaluate_weights(cfg, resume=True)
    assert file.read_text() == at_the_end
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    DistillTrainer.evaluate_weights(cfg)
    assert file.read_text() == at_the_end
    # The student by itself scores otherwise: the test would see it.
    cfg.MODEL.DISTILL.STUDENT_SHARE = 1.0
    DistillTrainer.test(cfg, trainer.model)
    assert file.read_text() != at_the_end


def test_a_users_loader_and_evaluator_score_the_distiller(emoji_cfg) -> None:
    seen = []

    class Own(DistillTrainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            return list(super().build_test_loader(cfg, dataset_name))[:1]

        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            seen.append(dataset_name)
            return super().build_evaluator(cfg, dataset_name)

    cfg = emoji_cfg("clipself_patches", "DATASETS.TEST", ("emoji_panoptic_val",))
    assert "region" in Own.evaluate_weights(cfg)
    assert seen == ["emoji_panoptic_val"]


def test_a_mixture_with_a_teacher_of_another_clip_is_refused_before_training(
    emoji_cfg, tmp_path
) -> None:
    concepts = tmp_path / "concepts.txt"
    concepts.write_text("dog,3\ncat,2\n")
    keys = ("MODEL.REGIONCLIP.CONCEPTS", str(concepts), "MODEL.VOCABULARY.TEMPLATES", "single")
    keys += ("MODEL.REGIONCLIP.TEACHER_PRETRAINED", "emoji", "INPUT.REGIONS.SOURCE", "grid")
    cfg = emoji_cfg("regionclip", *keys, "MODEL.DISTILL.STUDENT_SHARE", 0.5)
    model = DistillTrainer.build_model(cfg)
    with pytest.raises(ValueError, match=r"STUDENT_SHARE is 0\.5.* another CLIP"):
        StudentCheckpointer(distiller=model, save_dir=cfg.OUTPUT_DIR, alpha=0.5, trainer=None)


def metrics(cfg) -> list[dict]:
    return [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").open()]


@pytest.mark.parametrize(
    ("recipe", "iterations", "size", "share"),
    [("clipself_patches", 40, 64, 0.8), ("region_text", 30, 96, 1.0)],
)
def test_the_loss_falls(emoji_cfg, recipe, iterations, size, share) -> None:
    cfg = emoji_cfg(recipe, "SOLVER.MAX_ITER", iterations, "INPUT.REGIONS.IMAGE_SIZES", (size,))
    cfg.SOLVER.WARMUP_ITERS = 4
    run(cfg)
    losses = [row["total_loss"] for row in metrics(cfg) if "total_loss" in row]
    assert losses[-1] < share * losses[0], losses
    assert load_tower("ViT-Ti-8-emoji", str(Path(cfg.OUTPUT_DIR) / "model_final.pth"))


def test_a_tower_of_another_size_is_refused_by_name(emoji_cfg, tmp_path) -> None:
    cfg = emoji_cfg("clipself_patches")
    state = DistillTrainer.build_model(cfg).student.state_dict()
    state["visual.proj"] = torch.zeros(128, 64)
    torch.save({"model": state}, tmp_path / "other.pth")
    bad = emoji_cfg("clipself_patches", "MODEL.CLIP.WEIGHTS", str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match=r"other\.pth"):
        DistillTrainer.build_model(bad)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [("MODEL.CLIP.TRAINABLE_BLOCKS", 0, "TRAINABLE_BLOCKS"), ("SOLVER.OPTIMIZER", "SGD", "AdamW")],
)
def test_nothing_to_train_and_another_optimiser_are_errors(emoji_cfg, key, value, word) -> None:
    cfg = emoji_cfg("clipself_patches", key, value)
    with pytest.raises(ValueError, match=word):
        DistillTrainer.build_optimizer(cfg, DistillTrainer.build_model(cfg))


def test_accumulation_gives_the_weights_of_the_whole_batch(emoji_cfg, tmp_path) -> None:
    states = []
    for steps in (1, 2):
        cfg = emoji_cfg(
            "clipself_patches",
            "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0,
            "SOLVER.ADAM_EPS", 1e-3, "SOLVER.ACCUMULATION_STEPS", steps,
            "INPUT.REGIONS.IMAGE_SIZES", (96,), "OUTPUT_DIR", str(tmp_path / str(steps)),
        )  # fmt: skip
        states.append(run(cfg).model.state_dict())
    first, second = ({k.removeprefix("module."): v for k, v in s.items()} for s in states)
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=2e-6, rtol=1e-5)


def test_one_size_is_drawn_for_all_images_of_an_iteration(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "INPUT.REGIONS.IMAGE_SIZES", (64, 96, 128))
    loader = iter(DistillTrainer.build_train_loader(cfg))
    batches = [{max(item["image"].shape) for item in next(loader)} for _ in range(12)]
    assert all(len(sizes) == 1 for sizes in batches)
    assert set.union(*batches) == {64, 96, 128}


def test_every_addition_together_takes_a_step(emoji_cfg, monkeypatch) -> None:
    monkeypatch.setattr(data_build, "DistillMapper", partial(DistillMapper, whole_image=True))
    cfg = emoji_cfg(
        "clipself_patches",
        "MODEL.DISTILL.PAD_TO_SQUARE", True, "MODEL.CLIP.WINDOW_SIZE", 4,
        "MODEL.CLIP.ACTIVATION_CHECKPOINTING", True, "MODEL.CLIP.PRECISION", "bf16",
        "SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.MAX_ITER", 2,
        "INPUT.REGIONS.IMAGE_SIZES", (64,),
    )  # fmt: skip
    trainer = DistillTrainer(cfg)
    trainer.checkpointer._distiller.image_loss_weight = 0.5
    trainer.train()
    assert metrics(cfg)[-1]["loss_image"] >= 0
    assert 0 < metrics(cfg)[-1]["loss_cosine"] < 2


@pytest.mark.multi_process
def test_two_processes_equal_one_with_the_whole_batch(python, emoji_root, tmp_path) -> None:
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    environment = {**os.environ, "DETECTRON2_DATASETS": str(emoji_root), "OMP_NUM_THREADS": "1"}
    command = [python, str(script), str(Path(__file__).parents[2]), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, single = (
        torch.load(tmp_path / f"student{name}.pth", weights_only=True) for name in ("0", "1", "one")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key in first:
        torch.testing.assert_close(first[key], single[key], atol=2e-6, rtol=1e-5)


_SCRIPT = """
import sys
from pathlib import Path
import torch
import clipself_d2
from detectron2.engine import launch
from detectron2.utils import comm
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.distill_trainer import DistillTrainer

ROOT, OUT = sys.argv[1:]

def work(name):
    cfg = load_config(ROOT + "/configs/emoji/clipself_patches.yaml", [])
    cfg.merge_from_list(["MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.PRECISION", "fp32", "SEED", 7,
        "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 2, "DATASETS.TEST", (),
        "DATALOADER.NUM_WORKERS", 0, "SOLVER.WARMUP_ITERS", 0,
        # Adam would blow up the rounding of gradients that are zero, such as those of key biases.
        "SOLVER.ADAM_EPS", 1e-3,
        "INPUT.REGIONS.IMAGE_SIZES", (96,), "INPUT.REGIONS.MAX_BOXES", 4,
        "OUTPUT_DIR", f"{OUT}/{name}{comm.get_rank()}"])
    cfg.freeze()
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    torch.manual_seed(7)
    trainer = DistillTrainer(cfg)
    trainer.train()
    model = getattr(trainer._trainer.model, "module", trainer._trainer.model)
    suffix = name if comm.get_world_size() == 1 else comm.get_rank()
    torch.save(model.student.state_dict(), f"{OUT}/student{suffix}.pth")

if __name__ == "__main__":
    launch(work, 2, dist_url="auto", args=("pair",))
    launch(work, 1, args=("one",))
"""
