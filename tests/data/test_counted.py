import itertools
import random

import numpy as np
import pytest
import torch

from clipself_d2.data.counted import (
    CountedBatches,
    CountedDataset,
    SeededMapper,
    build_counted_loader,
    shuffled,
)

RECORDS = [{"image_id": number} for number in range(5)]


def mapper(
    record: dict[str, object], rng: np.random.Generator, image_size: int
) -> dict[str, object]:
    return {**record, "draw": int(rng.integers(1_000_000)), "size": image_size}


def take(loader: object, batches: int) -> list[list[dict[str, object]]]:
    return list(itertools.islice(iter(loader), batches))


def samples(number: int) -> list[dict[str, object]]:
    data = CountedDataset(records=RECORDS, mapper=mapper, seed=3, sizes=(64,))
    return [data[pair] for pair in enumerate(itertools.islice(shuffled(5, 3), number))]


def test_every_epoch_visits_every_record_once() -> None:
    rows = samples(15)
    for epoch in range(3):
        assert {row["image_id"] for row in rows[5 * epoch : 5 * epoch + 5]} == set(range(5))


def test_epochs_differ_in_order_and_draws() -> None:
    rows = samples(10)
    first, second = rows[:5], rows[5:]
    assert [row["image_id"] for row in first] != [row["image_id"] for row in second]
    assert {row["draw"] for row in first}.isdisjoint({row["draw"] for row in second})


def test_a_sample_does_not_depend_on_what_came_before() -> None:
    one, other = (
        CountedDataset(records=RECORDS, mapper=mapper, seed=3, sizes=(64,)) for _ in range(2)
    )
    ahead = [one[count, count % 5] for count in range(12)]
    assert other[11, 1] == ahead[11]
    assert other[2, 2] == ahead[2]


def batches(count: int, **options: object) -> list[list[tuple[int, int]]]:
    made = CountedBatches(order=lambda: shuffled(5, 3), total_batch=4, **options)
    return list(itertools.islice(iter(made), count))


@pytest.mark.parametrize("groups", [(), (0, 1, 1, 0, 1)])
def test_two_processes_share_the_batch_of_one(groups) -> None:
    whole = batches(6, groups=groups)
    parts = [batches(6, groups=groups, rank=rank, world_size=2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert len(first) == len(second) == 2
        assert sorted(first + second) == sorted(batch)


def test_a_batch_is_of_one_group_and_no_sample_is_lost() -> None:
    groups = (0, 1, 1, 0, 1)
    made = batches(20, groups=groups)
    assert all(len({groups[index] for _, index in batch}) == 1 for batch in made)
    expected = dict(itertools.islice(enumerate(shuffled(5, 3)), 80))
    seen = sorted(number for batch in made for number in batch)
    assert all(expected[count] == index for count, index in seen if count < 80)
    # What is left waits for others of its group.
    assert len(set(seen)) == 80
    assert len(set(range(80)) - {count for count, _ in seen}) <= 6


def test_a_mapper_of_detectron2_draws_by_the_sample_alone() -> None:
    def draw(record):
        return {"draw": (np.random.rand(), random.random(), float(torch.rand(())))}

    seen = []
    for run in range(2):
        np.random.seed(run)
        random.seed(run)
        torch.manual_seed(run)
        data = CountedDataset(records=RECORDS, mapper=SeededMapper(draw), seed=3)
        seen.append([data[count, 0]["draw"] for count in (0, 1)])
        assert np.random.rand() == np.random.RandomState(run).rand()
    assert seen[0] == seen[1]
    assert not set(seen[0][0]) & set(seen[0][1])


def test_a_loader_draws_nothing_from_the_run() -> None:
    torch.manual_seed(3)
    take(build_counted_loader(records=RECORDS, mapper=mapper, total_batch=2, seed=0), 3)
    drawn = torch.rand(())
    torch.manual_seed(3)
    assert torch.rand(()) == drawn


def test_a_resumed_loader_goes_on_where_the_first_stopped() -> None:
    options = {"records": RECORDS, "mapper": mapper, "total_batch": 2, "seed": 9, "sizes": (64, 96)}
    whole = take(build_counted_loader(**options), 5)
    late = build_counted_loader(**options)
    late.batch_sampler.start_iter = 3
    assert take(late, 2) == whole[3:]


def test_workers_do_not_change_the_samples() -> None:
    options = {"records": RECORDS, "mapper": mapper, "total_batch": 2, "seed": 9, "sizes": (64, 96)}
    plain = take(build_counted_loader(**options), 4)
    assert take(build_counted_loader(**options, num_workers=1), 4) == plain


def test_an_odd_batch_for_two_processes_names_its_key() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH"):
        CountedBatches(order=lambda: shuffled(5, 3), total_batch=3, world_size=2)


def test_a_size_alone_is_not_drawn(monkeypatch) -> None:
    drawn = []
    make = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or make(seed))
    data = CountedDataset(records=RECORDS, mapper=mapper, seed=3, sizes=(64,))
    assert data[2, 4]["size"] == 64
    assert drawn == [[3, 2]]


def test_an_iteration_has_one_size() -> None:
    options = {"records": RECORDS, "mapper": mapper, "seed": 3, "total_batch": 4}
    data = CountedDataset(**options, sizes=(64, 96, 128))
    sizes = [{data[4 * step + k, k]["size"] for k in range(4)} for step in range(20)]
    assert all(len(found) == 1 for found in sizes)
    assert set.union(*sizes) == {64, 96, 128}
