"""Published checkpoints by names and shapes, on meta tensors."""

import pytest
import torch

from clipself_d2.clip import load_clip
from clipself_d2.segmentation.cost_aggregator import CostAggregator
from clipself_d2.segmentation.published_checkpoints import (
    is_published,
    join_projections,
    rename_published,
)

LINEAR = ("weight", "bias")


def published_aggregator(embed: int) -> dict[str, tuple[int, ...]]:  # noqa: C901
    """Names and shapes of the released aggregator for a joint embedding of that width."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            outputs = weight[1] if name.endswith(".up") else weight[0]
            shapes[f"{name}.bias"] = (outputs,)

    add("conv1", 128, 1, 7, 7)
    add("guidance_projection.0", 128, embed, 3, 3)
    add("text_guidance_projection.0", 128, embed)
    add("decoder_guidance_projection.0.0", 32, 256, 3, 3)
    add("decoder_guidance_projection.1.0", 16, 128, 3, 3)
    for layer in ("layers.0", "layers.1"):
        add(f"{layer}.swin_block.guidance_norm", 128)
        for block in (1, 2):
            name = f"{layer}.swin_block.block_{block}"
            for norm in ("norm1", "norm2"):
                add(f"{name}.{norm}", 128)
            for part, inputs in (("q", 256), ("k", 256), ("v", 128), ("proj", 128)):
                add(f"{name}.attn.{part}", 128, inputs)
            add(f"{name}.mlp.fc1", 512, 128)
            add(f"{name}.mlp.fc2", 128, 512)
        shapes[f"{layer}.swin_block.block_2.attn_mask"] = (4, 144, 144)
        shapes[f"{layer}.attention.padding_tokens"] = (1, 1, 128)
        shapes[f"{layer}.attention.padding_guidance"] = (1, 1, 128)
        for part, inputs in (("q", 256), ("k", 256), ("v", 128)):
            add(f"{layer}.attention.attention.{part}", 128, inputs)
        add(f"{layer}.attention.MLP.0", 512, 128)
        add(f"{layer}.attention.MLP.2", 128, 512)
        for norm in ("norm1", "norm2"):
            add(f"{layer}.attention.{norm}", 128)
    for number, before, after, guide in ((1, 128, 64, 32), (2, 64, 32, 16)):
        add(f"decoder{number}.up", before, before - guide, 2, 2)
        for conv, norm, inputs in ((0, 1, before), (3, 4, after)):
            add(f"decoder{number}.conv.double_conv.{conv}", after, inputs, 3, 3, bias=False)
            add(f"decoder{number}.conv.double_conv.{norm}", after)
    add("head", 1, 32, 3, 3)
    return shapes


def split(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Query, key and value apart, as the released code keeps them."""
    apart = {}
    for key, value in state.items():
        if key.endswith("in_proj_weight"):
            for part, third in zip("qkv", value.chunk(3), strict=True):
                apart[key.replace("in_proj_weight", f"{part}_proj_weight")] = third
        else:
            apart[key] = value
    return apart


def make(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A published file with random weights, and our tensors."""
    with torch.device("meta"):
        clip = load_clip(name)
        aggregator = CostAggregator(embed_dim=clip.tower.embed_dim, guide_dims=(256, 128))
    width = clip.tower.width
    enlarge = {
        "0.weight": (width, 256, 2, 2),
        "0.bias": (256,),
        "1.weight": (width, 128, 4, 4),
        "1.bias": (128,),
    }
    predictor = "sem_seg_head.predictor."
    published = {
        f"upsample{int(key[0]) + 1}.{key[2:]}": torch.empty(shape, device="meta")
        for key, shape in enlarge.items()
    }
    for key, shape in published_aggregator(clip.tower.embed_dim).items():
        published[f"{predictor}transformer.{key}"] = torch.empty(shape, device="meta")
    for key, value in split(clip.open_clip_state_dict()).items():
        published[f"{predictor}clip_model.{key}"] = value
    own = {f"enlarge.{key}": torch.empty(shape, device="meta") for key, shape in enlarge.items()}
    own |= {f"aggregator.{key}": value for key, value in aggregator.state_dict().items()}
    own |= {f"tower.{key}": value for key, value in clip.tower.state_dict().items()}
    own |= {f"words.text.{key}": value for key, value in clip.text.state_dict().items()}
    return published, own


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu"])
def test_a_published_file_fills_the_model_exactly(name):
    published, own = make(name)
    assert is_published(published)
    renamed = rename_published(published, own)
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in own.items()
    }
    assert not is_published(renamed)


def test_query_key_and_value_are_joined_in_order():
    parts = {f"a.attn.{part}_proj_weight": torch.full((2, 2), i) for i, part in enumerate("kqv")}
    joined = join_projections(parts)["a.attn.in_proj_weight"]
    assert joined[:, 0].tolist() == [1, 1, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("upsample1.bias"), "1 missing: enlarge.0.bias"),
        (lambda s: s.update({"backbone.stem": torch.zeros(1)}), "1 unknown: backbone.stem"),
        (lambda s: s.update({"upsample1.bias": torch.zeros(3)}), "1 of another shape"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, message):
    published, own = make("ViT-B-16-quickgelu")
    change(published)
    with pytest.raises(ValueError, match=message):
        rename_published(published, own)


def test_a_model_loads_a_published_file_by_its_own_names(make_model):
    model = make_model("MODEL.CAT_SEG.DIM", 128, "MODEL.CAT_SEG.NUM_LAYERS", 2)
    model.load_state_dict(model.state_dict())
    other = make_model("MODEL.CAT_SEG.DIM", 128, "MODEL.CAT_SEG.NUM_LAYERS", 2)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    towers = {
        key.removeprefix("tower.").removeprefix("words.text.clip."): value
        for key, value in other.state_dict().items()
        if key.startswith(("tower.", "words."))
    }
    predictor = "sem_seg_head.predictor."
    published = {f"{predictor}clip_model.{key}": value for key, value in split(towers).items()}
    for key, shape in published_aggregator(other.tower.embed_dim).items():
        published[f"{predictor}transformer.{key}"] = torch.randn(shape)
    for key, value in other.state_dict().items():
        if key.startswith("enlarge."):
            published[f"upsample{int(key[8]) + 1}{key[9:]}"] = value
    model.load_state_dict(published)
    for key, value in model.state_dict().items():
        if not key.startswith("aggregator."):
            assert torch.equal(value, other.state_dict()[key]), key
    norm = f"{predictor}transformer.layers.1.swin_block.guidance_norm.weight"
    assert torch.equal(model.aggregator.spatial[1].guide_norm.weight, published[norm])
