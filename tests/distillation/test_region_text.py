import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F


def test_the_loss_is_the_binary_cross_entropy_of_all_classes_where_all_are_sampled(
    make_region_text, make_item
) -> None:
    model = make_region_text(num_sampled=10).train()
    item = make_item(0)
    loss = float(model([item])["loss_region_text"])
    model.eval()
    with torch.no_grad():
        region = model([item])[0]["roi"]
    logits = 20.0 * region @ model.text_KD.T
    target = F.one_hot(item["region_classes"], 10).float()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / 3
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_fewer_sampled_classes_cost_less(make_region_text, make_item) -> None:
    losses = [
        float(make_region_text(num_sampled=count).train()([make_item(0)])["loss_region_text"])
        for count in (10, 4)
    ]
    assert losses[1] < losses[0]


def test_the_draw_depends_on_the_seed_alone(make_region_text, make_item) -> None:
    first, second, other = (
        float(make_region_text(num_sampled=5, seed=s).train()([make_item(0)])["loss_region_text"])
        for s in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_class_embeddings_stay_out_of_the_checkpoint(make_region_text) -> None:
    assert "text_KD" not in make_region_text().state_dict()


def test_items_without_classes_name_the_key_to_change(make_region_text, make_item) -> None:
    item = make_item(0)
    del item["region_classes"]
    with pytest.raises(ValueError, match=r"INPUT\.REGIONS\.SOURCE"):
        make_region_text().train()([item])


def test_a_class_beyond_the_vocabulary_is_refused(make_region_text, make_item) -> None:
    item = make_item(0)
    item["region_classes"][0] = 10
    with pytest.raises(ValueError, match="class 10.*10 text embeddings"):
        make_region_text().train()([item])


def test_embeddings_of_another_width_are_refused(make_region_text) -> None:
    with pytest.raises(ValueError, match="64-d.*128-d"):
        make_region_text(text_KD=torch.randn(10, 64))


@pytest.mark.multi_process
def test_two_processes_learn_what_one_learns(python, tmp_path) -> None:
    script = Path(__file__).with_name("region_text_two_processes.py")
    command = [python, str(script), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, *two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", 0, 1))
    torch.testing.assert_close((two[0]["loss"] + two[1]["loss"]) / 2, one["loss"])
    for name, gradient in one["grads"].items():
        torch.testing.assert_close(two[0]["grads"][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
