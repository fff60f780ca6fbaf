from pathlib import Path

import numpy as np
import pytest
import torch

from clipself_d2.evaluation.referring import ReferringEvaluator, score_pair, summarise

GOLDEN = Path(__file__).parents[1] / "golden" / "cris" / "metric.npz"


def mask(*pixels):
    value = torch.zeros(4, 4, dtype=torch.bool)
    for row, column in pixels:
        value[row, column] = True
    return value


def run(pairs, evaluator=None):
    evaluator = evaluator or ReferringEvaluator(distributed=False)
    for predicted, truth in pairs:
        evaluator.process([{"gt_mask": truth}], [{"ref_mask": predicted}])
    return evaluator.evaluate()["ref_seg"]


FULL = torch.ones(4, 4, dtype=torch.bool)
HALF = torch.zeros(4, 4, dtype=torch.bool)
HALF[:2] = True
NONE = mask()


def test_counts_and_means_are_those_of_the_released_code():
    with np.load(GOLDEN) as file:
        golden = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    predicted = golden["logits"][:, 0].sigmoid() >= 0.35
    truth = golden["target"][:, 0] > 0.5
    pairs = [score_pair(p, t) for p, t in zip(predicted, truth, strict=True)]
    assert [pair.intersection for pair in pairs] == golden["I"].tolist()
    assert [pair.union for pair in pairs] == golden["U"].tolist()
    ious = torch.tensor([pair.iou for pair in pairs])
    torch.testing.assert_close(ious, golden["per_sample_iou"], rtol=0, atol=1e-5)
    scores = summarise(pairs)
    assert scores["mIoU"] == pytest.approx(float(golden["train_iou_percent"]), abs=1e-4)
    assert scores["Pr@50"] == pytest.approx(float(golden["train_pr50_percent"]))


def test_mean_and_overall_iou_weigh_pairs_and_pixels():
    scores = run([(HALF, FULL), (mask((0, 0)), mask((0, 0)))])
    assert scores["mIoU"] == pytest.approx(75.0)
    assert scores["oIoU"] == pytest.approx(100 * 9 / 17)
    assert scores["n"] == 2


def test_precision_asks_for_more_than_the_threshold():
    scores = run([(HALF, FULL), (FULL, FULL)])
    assert scores["Pr@50"] == pytest.approx(50.0)
    assert run([(FULL, FULL)])["Pr@90"] == pytest.approx(100.0)


def test_empty_targets_count_by_their_own_metrics_and_only_then():
    scores = run([(NONE, NONE), (mask((1, 1)), NONE), (FULL, FULL), (NONE, FULL)])
    assert scores["N-acc"] == pytest.approx(50.0)
    assert scores["T-acc"] == pytest.approx(50.0)
    assert scores["mIoU"] == pytest.approx(50.0)
    assert scores["oIoU"] == pytest.approx(100 * 16 / 33)
    assert "N-acc" not in run([(FULL, FULL)])
    assert run([(NONE, NONE)]) == {"mIoU": 100.0, "oIoU": 100.0, "N-acc": 100.0, "n": 1.0}


def test_precision_and_found_targets_are_of_the_pairs_with_a_target():
    scores = run([(NONE, NONE), (FULL, FULL), (NONE, FULL)])
    assert scores["Pr@50"] == pytest.approx(50.0)
    assert scores["T-acc"] == pytest.approx(50.0)


def test_uneven_shards_give_the_numbers_of_one_process(monkeypatch):
    pairs = [(HALF, FULL), (mask((0, 0)), mask((0, 0))), (NONE, HALF)]
    expected = run(pairs)
    shards = [ReferringEvaluator(), ReferringEvaluator()]
    for shard, part in ((shards[0], pairs[:1]), (shards[1], pairs[1:])):
        for predicted, truth in part:
            shard.process([{"gt_mask": truth}], [{"ref_mask": predicted}])
    module = "clipself_d2.evaluation.referring.comm"
    monkeypatch.setattr(f"{module}.synchronize", lambda: None)
    monkeypatch.setattr(f"{module}.gather", lambda own, dst: [own, shards[1]._pairs])
    assert shards[0].evaluate()["ref_seg"] == expected
    monkeypatch.setattr(f"{module}.is_main_process", lambda: False)
    assert shards[1].evaluate() == {}


def test_reset_forgets_and_nothing_gives_nothing(caplog):
    evaluator = ReferringEvaluator(distributed=False)
    run([(FULL, FULL)], evaluator)
    evaluator.reset()
    assert evaluator.evaluate() == {}
    assert "No sentence was segmented" in caplog.text
