"""What goes from the tower to the aggregator, to the loss and to the scores."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.segmentation import CATSegmentor
from clipself_d2.segmentation.losses import pixel_class_loss

# Numbers of ``labelled``'s classes among its base classes; the third is novel.
BASE_NUMBERS = {0: 0, 1: 1, 3: 2, 4: 3}


def normalise(model: CATSegmentor, image: Tensor) -> Tensor:
    return (image.float() - model.pixel_mean) / model.pixel_std


def same_size(items: list[dict]) -> list[dict]:
    return [{k: v[..., :56, :72] for k, v in item.items() if torch.is_tensor(v)} for item in items]


def test_the_decoder_is_guided_by_the_raw_map_and_by_the_blocks_of_the_thirds(make_model):
    model = make_model().eval()
    assert model.tap_blocks == (1, 3)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = model.encode(pixels)
        given = model.tower.forward_dense(pixels, (1, 3))
        raw, *finer = features.guides
        torch.testing.assert_close(features.dense, given.embedding)
        torch.testing.assert_close(features.dense.norm(dim=1), torch.ones(1, 8, 8))
        torch.testing.assert_close(raw.norm(dim=1, keepdim=True), given.lengths)
        torch.testing.assert_close(F.normalize(raw, dim=1), features.dense)
        for guide, enlarge, block in zip(finer, model.enlarge, given.blocks, strict=True):
            assert torch.equal(guide, enlarge(block))
    assert [guide.shape[-1] for guide in finer] == [16, 32]


def test_smaller_pictures_are_padded_with_what_does_not_count(make_model, items):
    model = make_model().train()
    padded = []
    for item in items:
        height, width = item["sem_seg"].shape
        image = model.pixel_mean.expand(3, 64, 80).clone()
        image[:, :height, :width] = item["image"].float()
        labels = torch.full((64, 80), 255)
        labels[:height, :width] = item["sem_seg"]
        padded.append({"image": image, "sem_seg": labels})
    torch.testing.assert_close(model(items), model(padded))


def test_the_loss_is_over_base_classes_numbered_among_themselves(make_model, items):
    model = make_model().train()
    items = same_size(items)
    labels = torch.stack([item["sem_seg"] for item in items])
    renumbered = torch.full_like(labels, 255)
    for number, base in BASE_NUMBERS.items():
        renumbered[labels == number] = base
    with torch.no_grad():
        features = model.encode(torch.stack([normalise(model, item["image"]) for item in items]))
        text = model.class_embeddings()[list(BASE_NUMBERS)]
        logits = model.aggregator(features.dense, features.guides, text)
        expected = pixel_class_loss(logits, renumbered, ignore_label=255, mask_ignored=True)
        torch.testing.assert_close(model(items)["loss_sem_seg"], expected)


def test_scores_are_probabilities_averaged_over_views_without_pooling(make_model, items):
    model = make_model("MODEL.CAT_SEG.POOLING", 4).eval()
    image, plan = items[0]["image"], model.options.windows
    with torch.no_grad():
        views, maps = plan.cut(normalise(model, image)), []
        for view in views:
            features = model.encode(view[None])
            logits = model.aggregator(
                features.dense, features.guides, model.class_embeddings(), pooling=1
            )
            maps.append(F.interpolate(logits, (64, 64), mode="bilinear")[0].sigmoid())
        expected = F.interpolate(plan.join(maps)[None], (50, 70), mode="bilinear")[0]
        torch.testing.assert_close(model(items[:1])[0]["sem_seg"], expected)


def test_the_sign_of_the_cosine_reaches_the_scores(make_model, items):
    # An aggregator that hands its input on, so that only what comes before it counts.
    model = make_model("MODEL.CAT_SEG.CANVAS_SIZE", 0).eval()
    classifier: TextClassifier = model.classifier
    seen: dict[str, Tensor] = {}

    def watch(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["cost"] = inputs[0]

    handle = model.aggregator.embed.register_forward_pre_hook(watch)
    with torch.no_grad():
        features = model.encode_views(items[0]["image"])
        own = F.normalize(features.dense.mean((0, 2, 3)), dim=0)
        words = torch.stack([own, -own])
        model.segment(features, (50, 70), words)
    handle.remove()
    like, unlike = seen["cost"].flatten(1)
    assert classifier.embed_dim == len(own)
    torch.testing.assert_close(like, torch.einsum("vdhw,d->vhw", features.dense, own).flatten())
    torch.testing.assert_close(unlike, -like)
