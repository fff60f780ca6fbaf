import pytest
import torch
from torch import nn

from clipself_d2.engine.accumulation import AccumulatingModel, unwrap


class Weighted(nn.Module):
    """Mean of w * x over the rows of all items; items count by their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, items):
        self.calls += 1
        if not self.training:
            return "evaluated"
        rows = torch.cat([item["rows"] for item in items])
        return {"loss_a": (self.weight * rows).mean(), "loss_b": (self.weight**2 * rows).mean()}

    def loss_weight(self, items) -> int:
        return sum(len(item["rows"]) for item in items)


ITEMS = [{"rows": torch.arange(1.0, n + 1)} for n in (1, 4, 2, 3)]


def wrap(model: nn.Module, steps: int) -> AccumulatingModel:
    return AccumulatingModel(model, steps=steps, backward=torch.Tensor.backward).train()


def run(steps: int) -> tuple[float, float, int]:
    model = Weighted()
    loss = sum(wrap(model, steps)(ITEMS).values())
    loss.backward()
    return float(loss.detach()), float(model.weight.grad), model.calls


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_parts_give_the_loss_and_gradient_of_the_whole(steps: int) -> None:
    loss, gradient, calls = run(steps)
    whole_loss, whole_gradient, _ = run(1)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert gradient == pytest.approx(whole_gradient, rel=1e-6)
    assert calls == steps


class Replayed(torch.autograd.Function):
    """Gives gradients as a pass does that a GPU recorded: always in the same memory."""

    memory = torch.zeros(())

    @staticmethod
    def forward(ctx, weight):
        return weight * 1.0

    @staticmethod
    def backward(ctx, gradient):
        Replayed.memory.copy_(gradient)
        return Replayed.memory.detach()


def test_gradients_outlive_the_memory_of_a_recorded_pass() -> None:
    class Recorded(Weighted):
        def forward(self, items):
            rows = torch.cat([item["rows"] for item in items])
            return {"loss": (Replayed.apply(self.weight) * rows).mean()}

    gradients = []
    for steps in (1, 2, 4):
        model = Recorded()
        wrap(model, steps)(ITEMS)["loss"].backward()
        gradients.append(float(model.weight.grad))
    assert gradients == pytest.approx([gradients[0]] * 3, rel=1e-6)


def test_items_count_alike_where_the_model_does_not_weigh_them() -> None:
    class Plain(Weighted):
        loss_weight = property()  # raises AttributeError, as if it were not there

    model = Plain()
    loss = float(wrap(model, 2)(ITEMS)["loss_a"].detach())
    means = [torch.cat([i["rows"] for i in part]).mean() for part in (ITEMS[:2], ITEMS[2:])]
    assert loss == pytest.approx(2.0 * float(sum(means)) / 2)


def test_a_model_that_prepares_the_parts_weighs_them_itself() -> None:
    class Comparing(Weighted):
        """Sum of the rows over the rows of the whole batch."""

        def prepare_parts(self, parts):
            count = sum(len(item["rows"]) for part in parts for item in part)
            return [[{**item, "count": count} for item in part] for part in parts]

        def forward(self, items):
            rows = torch.cat([item["rows"] for item in items])
            return {"loss": self.weight * rows.sum() / items[0].get("count", len(rows))}

    found = []
    for steps in (1, 3):
        model = Comparing()
        loss = wrap(model, steps)(ITEMS)["loss"]
        loss.backward()
        found.append((float(loss.detach()), float(model.weight.grad)))
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norms_in_training_are_warned_of_once(frozen, caplog) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, items):
            rows = torch.cat([item["rows"] for item in items])[:, None]
            return {"loss": self.norm(rows).square().mean()}

    model = Normed()
    wrapped = wrap(model, 2)
    model.norm.train(not frozen)
    for _ in range(2):
        wrapped(ITEMS)
    warnings = [r for r in caplog.records if "batch norms" in r.getMessage()]
    assert len(warnings) == (0 if frozen else 1)


def test_evaluation_passes_through_in_one_call() -> None:
    model = Weighted()
    assert wrap(model, 4).eval()(ITEMS) == "evaluated"
    assert model.calls == 1


def test_gradients_are_synchronised_by_the_last_part_alone() -> None:
    entered = []

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Weighted()

        def forward(self, items):
            return self.module(items)

        def no_sync(self):
            entered.append(self.module.calls)
            return torch.enable_grad()

    wrap(Parallel(), 3)(ITEMS)
    assert entered == [0, 1]


def test_too_few_items_name_the_keys() -> None:
    with pytest.raises(ValueError, match=r"4 images.*IMS_PER_BATCH.*ACCUMULATION_STEPS 5"):
        wrap(Weighted(), 5)(ITEMS)


def test_unwrap_takes_off_what_the_loop_put_around_a_model() -> None:
    model = Weighted()
    assert unwrap(wrap(model, 2)) is model
    assert unwrap(model) is model
