import numpy as np
import pytest
from PIL import Image

from clipself_d2.apps.emoji.captioned import CaptionedPictures, article, crop_and_pad
from clipself_d2.data.datasets.emoji_world import load_world


@pytest.mark.parametrize(
    ("name", "phrase"), [("dog", "a dog"), ("apple", "an apple"), ("ice cream", "an ice cream")]
)
def test_articles(name: str, phrase: str) -> None:
    assert article(name) == phrase


def test_a_crop_keeps_its_aspect_and_is_centred_on_black() -> None:
    image = np.full((40, 80, 3), 200, np.uint8)
    crop = crop_and_pad(image, np.array([0, 0, 80, 40]), 32)
    assert crop.shape == (32, 32, 3)
    assert crop[:8].max() == 0
    assert crop[24:].max() == 0
    assert crop[8:24].min() > 190


def test_a_square_crop_is_the_resized_picture() -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(crop_and_pad(image, np.array([0, 0, 20, 20]), 32), expected)


def test_labels_are_the_things_that_captions_name() -> None:
    names = (*load_world().thing_names, *load_world().stuff)
    batch = CaptionedPictures(batch_size=64, picture_size=32, seed=0, num_batches=1).batch(0)
    assert batch.images.shape == (64, 3, 32, 32)
    for label, caption in zip(batch.labels.numpy(), batch.captions, strict=True):
        shown = [names[number] for number in np.flatnonzero(label)]
        assert len(shown) >= 1
        assert sum(name in caption for name in shown) >= min(len(shown), 4), (shown, caption)


def test_workers_share_the_batches() -> None:
    pictures = CaptionedPictures(batch_size=4, picture_size=16, seed=0, num_batches=3)
    batches = list(pictures)
    assert len(batches) == 3
    assert batches[1].captions == pictures.batch(1).captions
