import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch

from clipself_d2.command_line.launch import find_runner

ROOT = Path(__file__).parents[2]
RUNNER = {"MASTER_ADDR": "localhost", "RANK": "3", "WORLD_SIZE": "4"}
RUNNER |= {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
DISTILLER = [str(ROOT / "tools" / "distill_train_net.py"), "--config-file"]
DISTILLER += [str(ROOT / "configs" / "emoji" / "clipself_patches.yaml")]


def small_run(output: Path, steps: int) -> list[str]:
    keys = ["MODEL.CLIP.PRETRAINED", "", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", str(steps)]
    keys += ["DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(output)]
    return [*keys, "INPUT.REGIONS.IMAGE_SIZES", "(64,)", "INPUT.REGIONS.MAX_BOXES", "4"]


def test_torchruns_variables_give_the_place_of_the_process() -> None:
    assert find_runner(RUNNER) == (1, 2)


def test_without_them_the_tool_starts_its_own_processes() -> None:
    assert find_runner({}) is None
    assert find_runner({"MASTER_ADDR": "localhost"}) is None


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_a_variable_that_lacks_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        find_runner({key: value for key, value in RUNNER.items() if key != name})


@pytest.mark.multi_process
def test_two_processes_of_torchrun_distil_together(
    python: str, emoji_root: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(emoji_root), "OMP_NUM_THREADS": "1"}
    runner = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*runner, *DISTILLER, *small_run(tmp_path, 1)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "model_final.pth").is_file()
    assert "Rank of current process: 1. World size: 2" in (tmp_path / "log.txt.rank1").read_text()


FAILING = """
import sys
from clipself_d2.engine.cli import launch_tool
from clipself_d2_cli.flags import train_parser
from detectron2.utils import comm

def work():
    if comm.get_rank() == 1:
        raise ValueError("MODEL.X is 3, use 4")
    comm.synchronize()

if __name__ == "__main__":
    args = train_parser("x").parse_args(["--num-gpus", "2", "--dist-url", "auto"])
    sys.exit(launch_tool(work, (), args))
"""


@pytest.mark.multi_process
def test_an_error_in_one_of_two_processes_is_one_sentence(python: str, tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text(FAILING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, str(tmp_path / "fail.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: MODEL.X is 3, use 4" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.multi_process
def test_two_processes_stop_at_a_signal_to_the_first_and_go_on(
    python, emoji_root, tmp_path
) -> None:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(emoji_root), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [python, *DISTILLER, "--num-gpus", "2", "--dist-url", "auto"]
    command += small_run(tmp_path, 500)
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        while process.poll() is None and " iter: " not in (tmp_path / "said.txt").read_text():
            time.sleep(0.1)
        process.terminate()
        assert process.wait(120) == 143
    text = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in text
    iteration = int(re.search(r"after iteration (\d+) of 500, which is saved", text).group(1))
    name = f"model_{iteration:07d}.pth"
    assert (tmp_path / "last_checkpoint").read_text() == name
    assert torch.load(tmp_path / name, weights_only=True)["iteration"] == iteration > 0


def test_the_slurm_script_starts_torchrun_on_every_machine(tmp_path: Path) -> None:
    for name, body in {"scontrol": "printf 'node7\\nnode8\\n'", "srun": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "42"}
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / "slurm_train.sh"), "tools/train_net.py", "--resume"],
        env={**os.environ, **job, "SLURM_GPUS_ON_NODE": "8", "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--nnodes 2 --nproc-per-node 8" in done.stdout
    assert "--rdzv-endpoint node7:29500 tools/train_net.py --resume" in done.stdout


def test_the_slurm_script_outside_a_job_says_how_to_submit_it() -> None:
    script = str(ROOT / "tools" / "slurm_train.sh")
    environment = {key: value for key, value in os.environ.items() if "SLURM" not in key}
    done = subprocess.run(
        ["bash", script, "x"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "sbatch" in done.stderr
