import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from clipself_d2.engine.trainer import ClippedAdamW, StrictCheckpointer, Trainer


def test_clipping_bounds_the_norm_of_all_gradients_together() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    optimizer = ClippedAdamW([{"params": parameters}], max_norm=1.0, lr=0.0)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 5.0)
    optimizer.step()
    norm = torch.cat([parameter.grad for parameter in parameters]).norm()
    assert float(norm) == pytest.approx(1.0, abs=1e-5)


def test_small_gradients_are_left_alone() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = ClippedAdamW([{"params": [parameter]}], max_norm=1.0, lr=0.0)
    parameter.grad = torch.tensor([0.3, 0.4])
    optimizer.step()
    assert parameter.grad.tolist() == pytest.approx([0.3, 0.4])


def test_a_checkpoint_of_another_shape_is_refused(tmp_path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"model": nn.Linear(3, 2).state_dict()}, file)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\), the model's \(2, 4\)"):
        StrictCheckpointer(nn.Linear(4, 2)).load(str(file))


def test_a_checkpoint_without_any_parameter_of_the_model_is_refused(tmp_path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"model": {"visual.proj": torch.zeros(2)}}, file)
    with pytest.raises(ValueError, match=r"MODEL\.CLIP\.WEIGHTS"):
        StrictCheckpointer(nn.Linear(4, 2)).load(str(file))


def test_a_fitting_checkpoint_is_loaded(tmp_path) -> None:
    source, target = nn.Linear(4, 2), nn.Linear(4, 2)
    torch.save({"model": source.state_dict()}, tmp_path / "same.pth")
    StrictCheckpointer(target).load(str(tmp_path / "same.pth"))
    assert torch.equal(source.weight, target.weight)


def test_the_optimizer_follows_its_key(emoji_cfg) -> None:
    cfg = emoji_cfg("rpn")
    model = Trainer.build_model(cfg)
    assert isinstance(Trainer.build_optimizer(cfg, model), torch.optim.AdamW)
    cfg.SOLVER.OPTIMIZER = "SGD"
    with pytest.raises(ValueError, match="full_model goes with"):
        Trainer.build_optimizer(cfg, model)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    assert isinstance(Trainer.build_optimizer(cfg, model), torch.optim.SGD)
    cfg.SOLVER.OPTIMIZER = "RMSprop"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'RMSprop'"):
        Trainer.build_optimizer(cfg, model)


def test_a_frozen_tower_is_no_part_of_the_optimizer(emoji_cfg) -> None:
    cfg = emoji_cfg("rpn")
    model = Trainer.build_model(cfg)
    trained = {id(p) for g in Trainer.build_optimizer(cfg, model).param_groups for p in g["params"]}
    expected = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == expected
    assert not any("visual" in name for name, p in model.named_parameters() if id(p) in trained)


def test_evaluators_cannot_be_passed(emoji_cfg) -> None:
    with pytest.raises(ValueError, match="evaluator_type"):
        Trainer.test(emoji_cfg("rpn"), nn.Linear(1, 1), evaluators=[])


def test_accumulation_wraps_the_model_of_the_loop_alone(emoji_cfg) -> None:
    trainer = Trainer(emoji_cfg("rpn", "SOLVER.ACCUMULATION_STEPS", 2))
    assert type(trainer._trainer.model).__name__ == "AccumulatingModel"
    assert not any(key.startswith("module.") for key in trainer.checkpointer.model.state_dict())
    trainer.train()
    assert trainer.iter == 4


@pytest.mark.multi_process
def test_two_processes_train_one_detector(emoji_root, tmp_path) -> None:
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    environment = {**os.environ, "DETECTRON2_DATASETS": str(emoji_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(Path(__file__).parents[2]), str(tmp_path)]
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
from clipself_d2.engine.trainer import Trainer

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
