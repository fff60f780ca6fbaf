"""CAT-Seg's aggregation over the number of classes, with and without a shortlist.

Legend: T classes, D joint embedding, h w grid of the tower.
"""

from typing import Any

import torch
from torch import Tensor

from clipself_d2.apps.benchmark.measure import (
    BenchmarkOptions,
    Row,
    Step,
    median_seconds,
    peak_memory,
)
from clipself_d2.segmentation.cost_aggregator import AggregatorSizes, CostAggregator
from clipself_d2.segmentation.windows import WindowPlan

# Words of Cityscapes, Pascal Context, ADE20K and ADE20K's full list.
CLASS_COUNTS = (19, 59, 150, 847)
SHORTLISTS = (0, 64)
_PATCH, _EMBED_DIM = 16, 512
_JOIN_CLASSES = 847


def measure_aggregation(options: BenchmarkOptions) -> list[Row]:
    """Time a window's aggregation at the published widths; random weights and features."""
    rows: list[Row] = []
    for size in options.sizes:
        cases = [(size, k, short) for k in CLASS_COUNTS for short in SHORTLISTS if short < k]
        steps = {str(case): build_view(*case, options.device) for case in cases}
        seconds = median_seconds(steps, options.repeats, options.device)
        for case in cases:
            memory = peak_memory(build_view, *case, options.device, options=options)
            rows.append(
                {
                    "window": size,
                    "classes": case[1],
                    "shortlist": case[2] or "none",
                    "s": seconds[str(case)],
                    "time ratio": seconds[str(case)] / seconds[str(cases[0])],
                    "step MiB": memory.step,
                }
            )
    return rows


def measure_joining(options: BenchmarkOptions) -> list[Row]:
    """Measure the memory of joining windows that are all kept, and that come one by one."""
    return [
        {
            "windows": "one by one" if lazy else "kept",
            "classes": _JOIN_CLASSES,
            "step MiB": peak_memory(build_join, lazy, options.device, options=options).step,
        }
        for lazy in (False, True)
    ]


def build_view(size: int, classes: int, shortlist: int, device: str) -> Step:
    """Make the aggregation of one view of ``size`` px; ``shortlist`` 0 takes all classes."""
    torch.manual_seed(0)
    sizes = AggregatorSizes(list_length=0)
    aggregator = CostAggregator(embed_dim=_EMBED_DIM, sizes=sizes).to(device).eval()
    grid = max(1, size // _PATCH)
    coarse, middle, fine = (
        torch.randn(1, dim, times * grid, times * grid, device=device)
        for dim, times in ((_EMBED_DIM, 1), (256, 2), (128, 4))
    )
    text_TD = torch.randn(classes, _EMBED_DIM, device=device)

    @torch.no_grad()
    def step() -> Tensor:
        scores: Tensor = aggregator(
            coarse, (coarse, middle, fine), text_TD, shortlist=shortlist, pooling=1
        )
        return scores

    return step


def build_join(lazy: bool, device: str) -> Step:
    """Make the joining of a picture's views, each made when it is joined if ``lazy``."""
    plan = WindowPlan(384, 640)
    side = plan.window_size

    def step() -> Tensor:
        views: Any = (
            torch.rand(_JOIN_CLASSES, side, side, device=device)
            for _ in range(len(plan.corners()) + 1)
        )
        return plan.join(views if lazy else list(views))

    return step
