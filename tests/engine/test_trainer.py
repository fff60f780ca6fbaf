import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator

from clipself_d2.engine.trainer import Trainer, only_set

ROOT = Path(__file__).parents[2]


def test_the_optimizer_follows_its_key(emoji_cfg) -> None:
    cfg = emoji_cfg("rpn")
    model = Trainer.build_model(cfg)
    assert isinstance(Trainer.build_optimizer(cfg, model), torch.optim.AdamW)
    cfg.SOLVER.OPTIMIZER = "SGD"
    with pytest.raises(ValueError, match="full_model goes with"):
        Trainer.build_optimizer(cfg, model)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    assert isinstance(Trainer.build_optimizer(cfg, model), torch.optim.SGD)


def test_a_frozen_tower_is_no_part_of_the_optimizer(emoji_cfg) -> None:
    cfg = emoji_cfg("rpn")
    model = Trainer.build_model(cfg)
    trained = {id(p) for g in Trainer.build_optimizer(cfg, model).param_groups for p in g["params"]}
    expected = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == expected
    assert not any("visual" in name for name, p in model.named_parameters() if id(p) in trained)


class CountingEvaluator(DatasetEvaluator):
    """Counts what it is given."""

    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: list, outputs: list) -> None:
        self.count += len(inputs)

    def evaluate(self) -> dict:
        return {"own": {"images": float(self.count)}}


class OwnTrainer(Trainer):
    """A user's trainer, which scores half of every data set in its own way."""

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return list(super().build_test_loader(cfg, dataset_name))[:2]

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return CountingEvaluator()


def written(cfg) -> dict:
    return json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())


@pytest.mark.parametrize("period", [0, 2])
def test_a_users_loader_and_evaluator_are_used(emoji_cfg, period) -> None:
    cfg = emoji_cfg("rpn", "DATASETS.TEST", ("emoji_ov_val",), "SOLVER.MAX_ITER", 2)
    if period:
        cfg.TEST.EVAL_PERIOD = period
        OwnTrainer(cfg).train()
    else:
        assert OwnTrainer.evaluate_weights(cfg) == {"own": {"images": 2.0}}
    scores = written(cfg)["emoji_ov_val"]
    assert scores["own"] == {"images": 2.0}
    assert scores["protocol"]["evaluator"] == "coco_ov"


def test_evaluators_may_be_passed_as_to_detectron2(emoji_cfg) -> None:
    cfg = emoji_cfg("rpn", "DATASETS.TEST", ("emoji_ov_val", "emoji_lvis_val"))
    model = Trainer.build_model(cfg)
    evaluators = [CountingEvaluator(), CountingEvaluator()]
    assert Trainer.test(cfg, model, evaluators)["emoji_lvis_val"]["own"]["images"] == 4.0
    with pytest.raises((AssertionError, ValueError)):
        Trainer.test(cfg, model, evaluators[:1])
    cfg.DATASETS.TEST = ("emoji_ov_val",)
    assert Trainer.test(cfg, model, CountingEvaluator()) == {"own": {"images": 4.0}}


def test_evaluation_resumes_from_the_last_checkpoint(emoji_cfg, tmp_path) -> None:
    cfg = emoji_cfg("fvit_untouched", "DATASETS.TEST", ("emoji_ov_val",), "SOLVER.MAX_ITER", 2)
    # The text tower is in no checkpoint, and a random one follows the seed.
    cfg.MODEL.CLIP.PRETRAINED = "emoji"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(7)
    Trainer(cfg).train()
    trained = written(cfg)["emoji_ov_val"]["bbox"]
    # The checkpoint brings the tower: a file that is gone is not missed.
    cfg.MODEL.CLIP.WEIGHTS = str(tmp_path / "gone.pth")
    torch.manual_seed(8)
    again = Trainer.evaluate_weights(cfg, resume=True)["bbox"]
    # The file has null for what is undefined.
    known = {name: float("nan") if v is None else v for name, v in trained.items()}
    assert again == pytest.approx(known, abs=0, nan_ok=True)


def test_a_model_that_is_not_finite_is_not_scored(emoji_cfg) -> None:
    cfg = emoji_cfg("rpn", "DATASETS.TEST", ("emoji_ov_val",))
    model = Trainer.build_model(cfg)
    torch.nn.init.constant_(next(p for p in model.parameters() if p.requires_grad), float("nan"))
    with pytest.raises(ValueError, match="not finite .*the model is not scored"):
        Trainer.test(cfg, model)
    assert not (Path(cfg.OUTPUT_DIR) / "results.json").exists()


@pytest.mark.parametrize(("expected", "passes"), [(4.0, True), (3.0, False)])
@pytest.mark.parametrize("trains", [True, False])
def test_expected_results_are_verified(emoji_cfg, expected, passes, trains) -> None:
    cfg = emoji_cfg("rpn", "DATASETS.TEST", ("emoji_ov_val",), "SOLVER.MAX_ITER", 1)
    cfg.TEST.EXPECTED_RESULTS = [["own", "images", expected, 0.1]]

    class Counting(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return CountingEvaluator()

    run = Counting(cfg).train if trains else partial(Counting.evaluate_weights, cfg)
    if passes:
        run()
    else:
        with pytest.raises(SystemExit) as end:
            run()
        assert end.value.code == 1


def test_accumulation_wraps_the_model_of_the_loop_alone(emoji_cfg) -> None:
    trainer = Trainer(emoji_cfg("rpn", "SOLVER.ACCUMULATION_STEPS", 2))
    assert type(trainer._trainer.model).__name__ == "AccumulatingModel"
    assert not any(key.startswith("module.") for key in trainer.checkpointer.model.state_dict())
    trainer.train()
    assert trainer.iter == 4


def test_a_cache_of_text_embeddings_does_not_change_the_heads(emoji_cfg, tmp_path) -> None:
    cfg = emoji_cfg("fvit_untouched", "MODEL.CLIP.PRETRAINED", "emoji")
    built = []
    for folder in ("", str(tmp_path), str(tmp_path)):
        cfg.MODEL.VOCABULARY.CACHE_DIR = folder
        torch.manual_seed(cfg.SEED)
        built.append(Trainer.build_model(cfg).state_dict())
    assert len(list(tmp_path.glob("text_*"))) == 1
    for other in built[1:]:
        assert all(torch.equal(value, other[key]) for key, value in built[0].items())


@pytest.mark.multi_process
def test_two_processes_train_one_detector(python, emoji_root, tmp_path) -> None:
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    environment = {**os.environ, "DETECTRON2_DATASETS": str(emoji_root), "OMP_NUM_THREADS": "1"}
    command = [python, str(script), str(ROOT), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, first, second = (
        torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("start", "0", "1")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    moved = [key for key in first if not torch.equal(before[key], first[key])]
    assert any("box_predictor" in key for key in moved)
    assert not any("visual" in key for key in moved)


_SCRIPT = """
import sys
from pathlib import Path
import torch
import clipself_d2
from detectron2.engine import launch
from detectron2.utils import comm
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.trainer import Trainer, only_set

ROOT, OUT = sys.argv[1:]

def work():
    rank = comm.get_rank()
    cfg = load_config(ROOT + "/configs/emoji/fvit_untouched.yaml", [])
    cfg.merge_from_list(["MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.PRECISION", "fp32", "SEED", 7,
        "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 3, "DATASETS.TEST", (),
        "DATALOADER.NUM_WORKERS", 0, "SOLVER.WARMUP_ITERS", 0, "OUTPUT_DIR", f"{OUT}/out{rank}"])
    cfg.freeze()
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    torch.manual_seed(7)
    trainer = Trainer(cfg)
    model = trainer._trainer.model.module
    if rank == 0:
        torch.save(model.state_dict(), f"{OUT}/start.pth")
    torch.manual_seed(rank)
    trainer.train()
    torch.save(model.state_dict(), f"{OUT}/{rank}.pth")

if __name__ == "__main__":
    launch(work, 2, dist_url="auto")
"""


def test_a_test_set_keeps_its_own_proposals(emoji_cfg) -> None:
    cfg = emoji_cfg(
        "fvit_untouched", "DATASETS.TEST", ("a", "b"), "DATASETS.PROPOSAL_FILES_TEST", ("1", "2")
    )
    only = only_set(cfg, "b")
    assert (only.DATASETS.TEST, only.DATASETS.PROPOSAL_FILES_TEST) == (("b",), ("2",))
    assert cfg.DATASETS.TEST == ("a", "b")


def test_without_wandb_the_key_names_the_extra(emoji_cfg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"WANDB_PROJECT is 'owls'.*clipself_d2\[wandb\]"):
        Trainer(emoji_cfg("fvit_untouched", "WANDB_PROJECT", "owls"))


@pytest.mark.slow
def test_an_offline_run_holds_scalars_and_pictures(emoji_data: Path, tmp_path: Path) -> None:
    """The real one, in a process of its own, which ends the run as a training does."""
    pytest.importorskip("wandb")
    config = ROOT / "configs" / "emoji" / "fvit_untouched.yaml"
    keys = "WANDB_PROJECT owls OUTPUT_DIR out SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0 "
    keys += "TEST.PICTURES 1 TEST.EVAL_PERIOD 2 MODEL.DEVICE cpu"
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(config)]
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "DETECTRON2_DATASETS": str(emoji_data),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*command, *keys.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (records,) = run.glob("*.wandb")
    content = records.read_bytes()
    for name in (b"total_loss", b"bbox/AP50", b"predictions/0", b"heat_map/0"):
        assert name in content, name
    assert len(list(run.glob("files/media/images/*.png"))) >= 2
