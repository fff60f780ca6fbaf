import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import clipself_d2.clip as clip_package
from clipself_d2.apps.emoji.captioned import CaptionedPictures
from clipself_d2.apps.emoji.train_clip import (
    EmojiClipOptions,
    EmojiClipTask,
    class_prompts,
    contrastive_loss,
    corpus_words,
    save_emoji_clip,
    train_emoji_clip,
)
from clipself_d2.clip import load_clip
from clipself_d2.clip.bpe import learn_merges, write_merges

NAME = "ViT-Ti-8-emoji"


def test_one_positive_a_row_is_clips_loss() -> None:
    logits = torch.randn(5, 5)
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(logits, torch.eye(5, dtype=torch.bool)), expected)


def test_several_positives_share_the_mass() -> None:
    logits = torch.tensor([[2.0, 2.0, -1.0]])
    positive = torch.tensor([[True, True, False]])
    rows = -F.log_softmax(logits, 1)[0, :2].mean()
    torch.testing.assert_close(contrastive_loss(logits, positive), (rows + 0.0) / 2)


def test_texts_without_a_picture_are_left_out() -> None:
    logits = torch.randn(3, 4)
    positive = torch.zeros(3, 4, dtype=torch.bool)
    positive[:, :3] = torch.eye(3, dtype=torch.bool)
    assert contrastive_loss(logits, positive).isfinite()


def test_the_shipped_merges_are_those_of_the_corpus(tmp_path) -> None:
    merges = learn_merges(corpus_words())
    size = write_merges(tmp_path / "merges.txt.gz", merges)
    clip = load_clip(NAME)
    shipped = Path(clip_package.__file__).parent / "model_configs" / "emoji_bpe.txt.gz"
    assert (tmp_path / "merges.txt.gz").read_bytes() == shipped.read_bytes()
    assert (
        size == json.loads((shipped.parent / f"{NAME}.json").read_text())["text_cfg"]["vocab_size"]
    )
    assert clip.text.unseen_words(corpus_words()) == []


def test_prompts_are_one_list_a_template() -> None:
    prompts = class_prompts(["apple", "dog"])
    assert len(prompts) == 8
    assert prompts[0] == ["an apple.", "a dog."]


def test_the_same_seed_trains_the_same_weights_and_they_load_back(tmp_path) -> None:
    options = EmojiClipOptions(
        steps=2, batch_size=8, warmup=1, precision="fp32", log_period=1, eval_period=100
    )
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = load_clip(NAME)
        task = EmojiClipTask(tower=model.tower, text=model.text)
        task.zero_shot = lambda: 0.0
        train_emoji_clip(task, options)
        states.append({key: value.clone() for key, value in model.tower.state_dict().items()})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    save_emoji_clip(model, task, tmp_path / "clip.safetensors")
    loaded = load_clip(NAME, str(tmp_path / "clip.safetensors"))
    for key, value in loaded.tower.state_dict().items():
        torch.testing.assert_close(value, states[1][key], atol=2e-3, rtol=2e-3)


def test_batches_depend_on_seed_and_number_alone() -> None:
    options = {"batch_size": 6, "picture_size": 32, "num_batches": 3}
    first = CaptionedPictures(seed=1, **options).batch(2)
    again = CaptionedPictures(seed=1, **options).batch(2)
    other = CaptionedPictures(seed=2, **options).batch(2)
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions
    assert not torch.equal(first.images, other.images)
    assert np.all(first.labels.any(1).numpy())


@pytest.mark.slow
def test_the_shipped_clip_names_single_objects() -> None:
    clip = load_clip(NAME, "emoji")
    assert EmojiClipTask(tower=clip.tower, text=clip.text).zero_shot() >= 0.85
