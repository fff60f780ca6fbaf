from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipself_d2.apps.analysis.heat_maps import (
    component_colors,
    dense_map,
    draw_components,
    draw_heat_maps,
    principal_components,
    read_words,
    similarity_maps,
)
from clipself_d2.apps.analysis.tower_spec import TowerSpec
from clipself_d2.clip import load_clip

SPEC = TowerSpec.parse("tiny=ViT-Ti-8-emoji:emoji")


@pytest.fixture
def image(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A picture of 44 x 32 px, whose width is no multiple of the patch."""
    Image.fromarray(rng.integers(0, 256, (32, 44, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def test_a_heat_map_is_the_cosine_of_the_dense_embedding(image: Path, tmp_path: Path) -> None:
    words = ["dog", "police car"]
    maps = draw_heat_maps(
        SPEC, image, words, tmp_path / "out.png", forms=("clipself", "attention"), device="cpu"
    )
    clip = load_clip("ViT-Ti-8-emoji", "emoji")
    pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1).float()
    pixels = F.pad(pixels, (0, 4))
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (clip.tower.pixel_mean, clip.tower.pixel_std)
    )
    text_KD = SPEC.embed(words).embeddings_KD
    for strategy, found in zip(("clipself", "attention"), maps, strict=True):
        with torch.no_grad():
            batch = ((pixels - mean) / std)[None]
            dense = clip.tower.forward_dense(batch, form=strategy).embedding
        for word, cosines in zip(text_KD, found, strict=True):
            expected = F.cosine_similarity(dense[0], word[:, None, None], dim=0)
            torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=1e-4)
    assert maps.shape == (2, 2, 4, 6)
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)


def test_a_map_of_one_word_is_that_word() -> None:
    text_KD = torch.eye(3)[:2]
    dense = text_KD[1][:, None, None].expand(3, 2, 5)
    maps = similarity_maps(dense, text_KD)
    assert torch.equal(maps[0], torch.zeros(2, 5))
    assert torch.equal(maps[1], torch.ones(2, 5))


def test_words_are_split_stripped_and_unique() -> None:
    assert read_words(" dog, police car,dog ,") == ["dog", "police car"]
    for empty in ("", " , "):
        with pytest.raises(ValueError, match="--words is empty"):
            read_words(empty)


def test_a_map_of_rank_one_has_one_component(rng: np.random.Generator) -> None:
    weight = torch.from_numpy(rng.normal(size=(4, 6)))
    direction = F.normalize(torch.tensor([1.0, -3.0, 2.0, 0.5, 0.0]).double(), dim=0)
    offset = torch.arange(5.0)[:, None, None]
    coordinates, share = principal_components(offset + direction[:, None, None] * weight)
    torch.testing.assert_close(share, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    # The largest entry of the direction is negative, so the component points the other way.
    expected = (weight.mean() - weight).float()
    torch.testing.assert_close(coordinates[0], expected, atol=1e-5, rtol=1e-5)
    assert not coordinates[1:].any()
    colors = component_colors(coordinates)
    assert (colors[..., 0].min(), colors[..., 0].max()) == (0.0, 1.0)
    assert (colors[..., 1:] == 0.5).all()


def test_components_are_uncorrelated_and_sorted(rng: np.random.Generator) -> None:
    dense = torch.from_numpy(rng.normal(size=(8, 6, 7)))
    coordinates, share = principal_components(dense, count=8)
    flat = coordinates.flatten(1).double()
    covariance = flat @ flat.T
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-4, rtol=0)
    assert (share[:-1] >= share[1:]).all()
    torch.testing.assert_close(share.sum(), torch.tensor(1.0))
    centred = dense - dense.mean((1, 2), keepdim=True)
    torch.testing.assert_close(flat.square().sum(), centred.square().sum(), atol=1e-3, rtol=1e-5)
    directions = flat @ centred.flatten(1).T
    peak = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    assert (peak > 0).all()


@pytest.mark.parametrize("shape", [(2, 3, 3), (5, 1, 2), (4, 1, 1)])
def test_a_map_of_few_components_is_filled_with_zeros(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    coordinates, share = principal_components(torch.randn(shape))
    assert coordinates.shape == (3, *shape[1:])
    assert share.shape == (3,)
    assert torch.isfinite(coordinates).all()
    assert not coordinates[2].any()
    assert np.isfinite(component_colors(coordinates)).all()


def test_components_of_every_tower_are_drawn(image: Path, tmp_path: Path) -> None:
    specs = [SPEC, TowerSpec("again", SPEC.name, SPEC.weights)]
    shares = draw_components(specs, image, tmp_path / "new" / "out.png", device="cpu")
    assert shares.shape == (1, 2, 3)
    torch.testing.assert_close(shares[:, 0], shares[:, 1])
    pixels = np.asarray(Image.open(image).convert("RGB"))
    expected = principal_components(dense_map(SPEC.load(), Image.fromarray(pixels)))[1]
    torch.testing.assert_close(shares[0, 0], expected)
    drawn = np.asarray(Image.open(tmp_path / "new" / "out.png").convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


def test_the_size_is_the_longest_side(image: Path, tmp_path: Path) -> None:
    maps = draw_heat_maps(SPEC, image, ["dog"], tmp_path / "out.png", size=88, device="cpu")
    assert maps.shape == (1, 1, 8, 11)


def test_bad_pictures_sizes_and_lists_are_named(image: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg does not exist"):
        draw_heat_maps(SPEC, tmp_path / "gone.jpg", ["dog"], output)
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    with pytest.raises(ValueError, match=r"half\.jpg cannot be decoded"):
        draw_components([SPEC], tmp_path / "half.jpg", output)
    with pytest.raises(ValueError, match="--size is -1"):
        draw_heat_maps(SPEC, image, ["dog"], output, size=-1)
    assert not output.exists()
