"""Text embeddings in the files of other projects."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_d2.vocabulary import Vocabulary
from clipself_d2.vocabulary.published_tables import read_published_embeddings

D = 6
PETS = Vocabulary.from_names(["cat", "traffic_light", "owl"], novel=["owl"])
ROWS = torch.randn(4, D, generator=torch.Generator().manual_seed(0))
NAMED = {"owl": ROWS[2], "zebra": ROWS[0] * 9, "cat": ROWS[0], "Traffic light": ROWS[1]}


def read(path: Path, vocabulary: Vocabulary = PETS):
    return read_published_embeddings(path, vocabulary, clip="stub", templates="vild", weights="w")


def write(content: object, path: Path) -> Path:
    np.save(path, content) if path.suffix == ".npy" else torch.save(content, path)
    return path


def test_named_vectors_are_picked_by_name_and_scaled(tmp_path: Path) -> None:
    found = read(write({**NAMED, "background": ROWS[3]}, tmp_path / "a.pt"))
    torch.testing.assert_close(found.embeddings_KD, F.normalize(ROWS[:3], dim=1))
    torch.testing.assert_close(found.background_D, F.normalize(ROWS[3], dim=0))
    assert found.vocabulary == PETS
    assert (found.clip, found.templates, found.weights) == ("stub", "vild", "w")


def test_file_without_background_has_none(tmp_path: Path) -> None:
    assert read(write(NAMED, tmp_path / "a.pt")).background_D is None


def test_exact_name_wins_over_one_that_reads_alike(tmp_path: Path) -> None:
    vectors = {"Cat": ROWS[0], "cat": ROWS[1]}
    for order in (vectors, dict(reversed(vectors.items()))):
        found = read(write(order, tmp_path / "a.pt"), Vocabulary.from_names(["cat"]))
        torch.testing.assert_close(found.embeddings_KD[0], F.normalize(ROWS[1], dim=0))


@pytest.mark.parametrize("suffix", ["pth", "npy"])
@pytest.mark.parametrize("background", [False, True])
def test_bare_table_is_in_the_order_of_the_vocabulary(tmp_path, suffix, background) -> None:
    table = ROWS if background else ROWS[:3]
    content = table.half() if suffix == "pth" else table.numpy()
    found = read(write(content, tmp_path / f"a.{suffix}"))
    tolerance = {"rtol": 0, "atol": 2e-3}
    torch.testing.assert_close(found.embeddings_KD, F.normalize(ROWS[:3], dim=1), **tolerance)
    assert (found.background_D is not None) == background


def test_synonyms_are_dropped_because_the_file_is_not_of_them(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("cat",), (True,), synonyms=(("puss",),))
    assert read(write({"cat": ROWS[0]}, tmp_path / "a.pt"), vocabulary).vocabulary.synonyms == ()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"cat": ROWS[0], "dog": ROWS[1]}, r"not 2 of the vocabulary's 3.*'traffic_light', 'owl'"),
        ({"cat": ROWS[0], "owl": ROWS[1, :3]}, "all of one width"),
        ({"cat": "text"}, "holds a dict"),
        (ROWS[:2], "table of 2 rows without names.*3 rows are expected"),
        (ROWS[0], r"tensor of shape \(6,\)"),
        ([1], "holds a list"),
        ({**NAMED, "owl": torch.zeros(D)}, "zero or not finite"),
        ({**NAMED, "owl": torch.full((D,), float("nan"))}, "zero or not finite"),
        (Path("code"), "cannot be read as tensors"),
    ],
)
def test_what_does_not_fit_is_told(content: object, complaint: str, tmp_path: Path) -> None:
    write(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path / "a.pt")


def test_objects_of_numpy_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"cat": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy cannot be read as tensors"):
        read(tmp_path / "a.npy")


def test_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt does not exist"):
        read(Path("nowhere.pt"))
