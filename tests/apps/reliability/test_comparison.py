import torch

from clipself_d2.apps.reliability.comparison import difference, weights_of


def test_a_difference_of_one_bit_counts() -> None:
    first = {"a": torch.ones(3), "b": torch.zeros(2)}
    second = {key: value.clone() for key, value in first.items()}
    assert difference(first, second) == ""
    second["a"][0] = torch.nextafter(second["a"][0], torch.tensor(2.0))
    assert difference(first, second) == "1 tensors differ, by 1.2e-07 at most"
    assert difference(first, {"a": first["a"]}) == "other names"


def test_the_weights_are_those_of_the_finished_training(tmp_path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "iteration": 3}, tmp_path / "model_final.pth")
    assert difference(weights_of(tmp_path), {"a": torch.ones(2)}) == ""
