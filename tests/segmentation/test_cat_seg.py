"""The model as a whole: what learns, what is cached, what inference gives."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clipself_d2.engine.solver import (
    build_optimizer,
    keep_idle_rows,
    optimizer_params_from_cfg,
)
from clipself_d2.engine.trainer import Trainer
from clipself_d2.parts.text_embeddings import read_text_embeddings
from clipself_d2.segmentation import WindowPlan
from clipself_d2.vocabulary import Vocabulary, use_vocabulary

PARTS = "MODEL.CLIP.TRAINABLE_PARTS"


@pytest.mark.parametrize("rule", ["query_value", "attention", "all"])
@pytest.mark.parametrize("form", ["clipself", "catseg"])
def test_every_trained_parameter_gets_a_gradient(make_model, items, rule, form):
    model = make_model(PARTS, rule, "MODEL.CLIP.DENSE_FORM", form).train()
    sum(model(items).values()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # A key's bias moves all scores of a query alike, so that its gradient is rounding.
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    assert any(name.startswith("words.") for name in trained)
    assert any(name.startswith("tower.") for name in trained)


def test_the_published_rule_trains_query_and_value_weights_alone(make_model, items, catseg_cfg):
    model = make_model().train()
    towers = {
        name: p
        for name, p in model.named_parameters()
        if name.startswith(("tower.", "words.")) and p.requires_grad
    }
    blocks = len(model.tower.block_modules) + len(model.words.text.clip.transformer.resblocks)
    assert len(towers) == blocks
    assert all(name.endswith("attn.in_proj_weight") for name in towers)
    before = {name: p.detach().clone() for name, p in towers.items()}
    cfg = catseg_cfg("SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.BACKBONE_MULTIPLIER", 1.0)
    optimizer = keep_idle_rows(build_optimizer(cfg, optimizer_params_from_cfg(cfg, model)), model)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model(items).values()).backward()
        optimizer.step()
    last = f"{model.tower.num_blocks - 1}.attn.in_proj_weight"
    for name, p in towers.items():
        query, key, value = (p - before[name]).abs().flatten(1).amax(1).chunk(3)
        assert not key.any()
        assert value.all()
        # The last block of the image tower has no query in its dense form.
        is_last = name.startswith("tower.") and name.endswith(last)
        assert not query.any() if is_last else query.any()


def test_frozen_towers_run_without_graph_and_stay_in_eval_mode(make_model, items):
    model = make_model("MODEL.CLIP.TRAINABLE_BLOCKS", 0, "MODEL.CLIP.TEXT_TRAINABLE_BLOCKS", 0)
    model.train()
    assert not model.tower.training
    assert model.words is None
    sum(model(items).values()).backward()
    assert all(p.grad is None for p in model.tower.parameters())


def test_the_loss_falls(make_model, items):
    model = make_model().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = sum(model(items).values())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_scores_are_probabilities_at_the_size_asked_for(make_model, items):
    model = make_model().eval()
    with torch.no_grad():
        outputs = model(items)
    for output in outputs:
        assert output["sem_seg"].shape == (5, 50, 70)
        assert 0 <= output["sem_seg"].min() < output["sem_seg"].max() <= 1


def test_features_serve_any_number_of_vocabularies(make_model, items):
    model = make_model().eval()
    with torch.no_grad():
        features = model.encode_views(items[0]["image"])
        own = model.class_embeddings()
        expected = model(items[:1])[0]["sem_seg"]
        torch.testing.assert_close(model.segment(features, (50, 70)), expected)
        other = F.normalize(torch.randn(3, own.shape[1]), dim=1)
        assert model.segment(features, (50, 70), other).shape == (3, 50, 70)


def test_a_complete_shortlist_is_exact_and_a_short_one_keeps_the_best(make_model, items):
    model = make_model().eval()
    with torch.no_grad():
        full = model(items[:1])[0]["sem_seg"]
        model.options = replace(model.options, shortlist=5)
        torch.testing.assert_close(model(items[:1])[0]["sem_seg"], full)
        model.options = replace(model.options, shortlist=2, windows=WindowPlan(64, 0))
        short = model(items[:1])[0]["sem_seg"]
        features = model.encode_views(items[0]["image"])
        cosine = torch.einsum("vdhw,td->tvhw", features.dense, model.class_embeddings())
    kept = short.flatten(1).amax(1) > 1e-20
    assert kept.sum() == 2
    assert set(kept.nonzero().flatten().tolist()) == set(
        cosine.flatten(1).amax(1).topk(2).indices.tolist()
    )


def test_views_with_other_lists_are_joined_as_if_every_class_was_enlarged(make_model, items):
    model = make_model("MODEL.CAT_SEG.SHORTLIST", 2).eval()
    with torch.no_grad():
        features = model.encode_views(items[0]["image"].float())
        found = model.segment(features, (50, 70))
        text = model.class_embeddings()
        cosine = torch.einsum("vdhw,td->tvhw", features.dense, text)
        lists = cosine.flatten(2).amax(2).topk(2, dim=0).indices
        maps = model.aggregator(features.dense, features.guides, text, shortlist=2, pooling=1)
        joined = model.options.windows.join(resize(maps, (64, 64)).sigmoid())
        expected = resize(joined[None], (50, 70))[0]
    assert len(lists.unique()) > 2, "the views have other lists"
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def test_other_classes_come_and_go(make_model, catseg_cfg, items):
    model = make_model().eval()
    words = Vocabulary.from_names(["dog", "tree"])
    given = read_text_embeddings(catseg_cfg(), words)
    with torch.no_grad():
        first = model(items[:1])[0]["sem_seg"]
        with use_vocabulary(model, given):
            assert len(model(items[:1])[0]["sem_seg"]) == 2
            own = model.words.text.encode(
                [t.replace("{}", "dog") for t in ("a {}.", "a photo of a {}.")]
            )
            assert not torch.equal(model.classifier.embeddings_KD, given.embeddings_KD)
            assert own.shape[1] == model.classifier.embed_dim
        assert torch.equal(model(items[:1])[0]["sem_seg"], first)


def test_word_embeddings_are_kept_until_the_text_tower_changes(make_model, items):
    model = make_model().eval()
    words = model.words
    kept = words.embed(words.vocabulary)
    assert words.embed(words.vocabulary) is kept
    torch.testing.assert_close(model.class_embeddings(), kept.embeddings_KD)
    words.templates = "emoji"
    assert words.embed(words.vocabulary) is not kept
    words.templates = "single"
    model.train()
    torch.testing.assert_close(model.class_embeddings(), kept.embeddings_KD, atol=1e-5, rtol=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    sum(model(items).values()).backward()
    optimizer.step()
    expected = model.class_embeddings()
    model.eval()
    torch.testing.assert_close(model.class_embeddings(), expected, atol=1e-5, rtol=0)
    assert (expected - kept.embeddings_KD).abs().max() > 1e-3


def test_weights_loaded_into_a_model_in_eval_mode_change_its_words(make_model):
    model, other = make_model().eval(), make_model("MODEL.CLIP.NAME", "ViT-Ti-8-emoji").eval()
    with torch.no_grad():
        for parameter in other.words.parameters():
            parameter.mul_(1.5)
        before = model.class_embeddings().clone()
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model.class_embeddings(), other.class_embeddings())
        assert not torch.allclose(model.class_embeddings(), before)


@pytest.mark.parametrize("clip_size", [64, 48, 40])
def test_any_grid_will_do(make_model, items, clip_size):
    model = make_model("MODEL.CAT_SEG.CLIP_SIZE", clip_size).train()
    assert sum(model(items).values()).isfinite()
    with torch.no_grad():
        assert model.eval()(items[:1])[0]["sem_seg"].isfinite().all()


def test_a_tower_without_tokens_is_refused(make_model):
    with pytest.raises(ValueError, match="reads the tokens of a ViT"):
        make_model(
            *("MODEL.CLIP.NAME", "RN50-quickgelu", "MODEL.CLIP.TEXT_TRAINABLE_BLOCKS", 0),
            *(PARTS, "all"),
        )


def test_a_label_outside_of_the_classes_is_named(make_model, items):
    items[0]["sem_seg"][20, 20] = 9
    with pytest.raises(ValueError, match="class 9, but there are 5 classes"):
        make_model().train()(items)


def test_bf16_autocast_takes_a_step(make_model, items):
    model = make_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(model(items).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_resumed_run_equals_an_uninterrupted_one(catseg_cfg, tmp_path):
    # One picture without chance, since Detectron2's sampler does not go on where it stopped.
    fixed = ("DATASETS.TRAIN", ("one_label",), "INPUT.RANDOM_FLIP", "none", "SOLVER.MAX_ITER", 4)

    def run(name: str, period: int, *, resume: bool = False) -> dict[str, torch.Tensor]:
        seed = int(resume)
        cfg = catseg_cfg(*fixed, "OUTPUT_DIR", str(tmp_path / name), "SEED", seed)
        cfg.SOLVER.CHECKPOINT_PERIOD = period
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer.model.state_dict()

    whole = run("run", 2)
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000001.pth")
    again = run("run", 2, resume=True)
    assert set(whole) == set(again)
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
