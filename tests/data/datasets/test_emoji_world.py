import numpy as np
import pytest

from clipself_d2.data.datasets.emoji_world import (
    TRAIN_FAMILIES,
    UNSEEN_FAMILIES,
    load_atlas,
    load_world,
)


def test_there_are_60_base_and_20_novel_things_and_8_stuffs() -> None:
    world = load_world()
    assert len(world.things) == 80
    assert len(world.novel_names) == 20
    assert len(world.stuff) == 8
    assert [thing.id for thing in world.things] == list(range(1, 81))
    assert list(world.thing_names) == sorted(world.thing_names)
    assert set(world.stuff_ids).isdisjoint(thing.id for thing in world.things)


def test_novel_is_rare() -> None:
    assert {t.name for t in load_world().things if t.frequency == "r"} == set(
        load_world().novel_names
    )


def test_the_training_frequency_is_a_long_tail_in_the_order_of_ranks() -> None:
    world = load_world()
    frequency = world.training_frequency()
    assert frequency.sum() == pytest.approx(1.0)
    by_rank = frequency[np.argsort([thing.rank for thing in world.things])]
    assert np.all(np.diff(by_rank) < 0)
    assert by_rank[0] / by_rank[-1] > 5
    novel = [p for p, t in zip(frequency, world.things, strict=True) if t.frequency == "r"]
    base = [p for p, t in zip(frequency, world.things, strict=True) if t.frequency != "r"]
    assert max(novel) < min(base)


def test_every_thing_has_a_sprite_of_every_family_with_premultiplied_alpha() -> None:
    atlas = load_atlas()
    for variants in atlas.sprites:
        assert len(variants) % len(TRAIN_FAMILIES) == 0
        full, half, quarter = variants[0]
        assert full.shape == (96, 96, 4)
        assert (half.shape[0], quarter.shape[0]) == (48, 24)
        assert np.all(full[..., :3] <= full[..., 3:])
        assert (full[..., 3] > 127).mean() > 0.05


def test_the_unseen_family_has_all_things_and_other_pictures() -> None:
    unseen = load_atlas(UNSEEN_FAMILIES)
    seen = load_atlas()
    assert len(unseen.sprites) == 80
    assert not np.array_equal(unseen.sprites[0][0][0], seen.sprites[0][0][0])


def test_a_missing_folder_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_atlas(sprite_dir=tmp_path)
