"""Views of a picture and how they are joined."""

from collections.abc import Iterator
from weakref import ref

import torch

from clipself_d2.segmentation.windows import WindowPlan


def test_the_published_plan_has_four_windows_with_steps_of_256():
    assert WindowPlan(384, 640).corners() == [(0, 0), (0, 256), (256, 0), (256, 256)]


def test_windows_reach_the_border_whatever_the_step():
    plan = WindowPlan(30, 100)
    starts = sorted({row for row, _ in plan.corners()})
    assert starts[0] == 0
    assert starts[-1] == 70
    assert all(b - a <= 30 for a, b in zip(starts[:-1], starts[1:], strict=True))


def test_cut_and_joined_pixels_are_the_picture():
    plan = WindowPlan(30, 100)
    # A ramp survives resizing but for its ends.
    ramp = torch.linspace(0, 1, 100).expand(3, 100, 100).contiguous()
    joined = plan.join(list(plan.cut(ramp)))
    assert joined.shape == (3, 100, 100)
    torch.testing.assert_close(joined[:, :, 5:-5], ramp[:, :, 5:-5], atol=0.01, rtol=0)


def test_the_whole_picture_counts_as_much_as_all_windows():
    plan = WindowPlan(30, 40)
    views = len(plan.corners())
    scores = [torch.ones(1, 30, 30)] * views + [torch.zeros(1, 30, 30)]
    torch.testing.assert_close(plan.join(scores), torch.full((1, 40, 40), 0.5))


def test_without_a_canvas_the_picture_is_the_only_view():
    plan = WindowPlan(30, 0)
    assert plan.cut(torch.rand(3, 50, 60)).shape == (1, 3, 30, 30)
    whole = torch.rand(2, 30, 30)
    assert torch.equal(plan.join([whole]), whole)


def test_a_joined_window_is_let_go_before_the_next_is_made():
    plan = WindowPlan(30, 40)
    alive: list[ref] = []

    def views() -> Iterator[torch.Tensor]:
        for _ in range(len(plan.corners()) + 1):
            assert sum(kept() is not None for kept in alive) <= 1
            view = torch.rand(70, 30, 30)
            alive.append(ref(view))
            yield view
            del view

    assert plan.join(views()).shape == (70, 40, 40)


def test_many_classes_are_joined_as_a_few():
    plan = WindowPlan(30, 40)
    views = list(torch.rand(len(plan.corners()) + 1, 70, 30, 30))
    joined = plan.join(views)
    for rows in (slice(0, 32), slice(20, 52), slice(64, 70)):
        assert torch.equal(joined[rows], plan.join([view[rows] for view in views]))
