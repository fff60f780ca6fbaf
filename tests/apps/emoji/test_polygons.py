import numpy as np
import pytest
from pycocotools import mask as mask_api

from clipself_d2.apps.emoji.polygons import mask_to_polygons
from clipself_d2.apps.emoji.scenes import SceneRenderer


def back(polygons: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    codes = mask_api.frPyObjects(polygons, *shape)
    return mask_api.decode(mask_api.merge(codes)).astype(bool)


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_comes_back_from_its_polygons(seed: int) -> None:
    scene = SceneRenderer().render(np.random.default_rng(seed))
    for number in range(len(scene.objects)):
        mask = scene.instance_map == number + 1
        again = back(mask_to_polygons(mask), mask.shape)
        union = (mask | again).sum()
        assert (mask & again).sum() / union > 0.95


def test_a_hole_stays_open() -> None:
    mask = np.zeros((30, 30), bool)
    mask[5:25, 5:25] = True
    mask[12:18, 12:18] = False
    again = back(mask_to_polygons(mask), mask.shape)
    assert not again[14:16, 14:16].any()
    assert (mask & again).sum() / (mask | again).sum() > 0.9


def test_two_parts_give_two_polygons() -> None:
    mask = np.zeros((20, 40), bool)
    mask[5:15, 3:13] = True
    mask[5:15, 25:35] = True
    assert len(mask_to_polygons(mask)) == 2
