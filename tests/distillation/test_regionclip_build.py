from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from clipself_d2.clip import load_tower
from clipself_d2.distillation import RegionCLIPPretrainer, regionclip_build
from clipself_d2.distillation.regionclip import LossWeights
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary


@pytest.fixture
def concepts(tmp_path: Path) -> str:
    file = tmp_path / "concepts.txt"
    file.write_text("dog,3\ncat,2\n")
    return str(file)


@pytest.fixture
def make(emoji_cfg, concepts):
    """Function from overrides to the pre-trainer of the emoji recipe with random weights."""

    def build(*overrides: object) -> RegionCLIPPretrainer:
        keys = ("MODEL.REGIONCLIP.CONCEPTS", concepts, "MODEL.VOCABULARY.TEMPLATES", "single")
        torch.manual_seed(0)
        return build_model(emoji_cfg("regionclip", *keys, *overrides))

    return build


def same(first, second) -> bool:
    rest = second.state_dict()
    return all(torch.equal(value, rest[name]) for name, value in first.state_dict().items())


def test_the_teacher_is_a_frozen_copy_of_the_student(make) -> None:
    model = make()
    assert same(model.student, model.teacher)
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    torch.testing.assert_close(model.concepts_CD, model.teacher_concepts_CD)
    assert model.concepts_CD.shape == (2, 128)
    assert model.proposer is None


def test_the_students_own_weights_leave_the_teacher_alone(make, tmp_path) -> None:
    # Random weights follow the seed of torch's generator alone.
    torch.manual_seed(123)
    other = load_tower("ViT-Ti-8-emoji")
    torch.manual_seed(0)
    torch.save({"model": other.state_dict()}, tmp_path / "student.pth")
    model = make("MODEL.CLIP.WEIGHTS", str(tmp_path / "student.pth"))
    assert same(model.student, other)
    assert not same(model.teacher, other)


def test_another_teacher_brings_its_own_concept_table(make) -> None:
    model = make(
        *("MODEL.REGIONCLIP.TEACHER_NAME", "ViT-Ti-8-emoji"),
        *("MODEL.REGIONCLIP.TEACHER_PRETRAINED", "emoji"),
    )
    assert not same(model.student, model.teacher)
    assert (model.concepts_CD - model.teacher_concepts_CD).abs().max() > 0.01


def test_the_teachers_weights_alone_are_of_the_students_clip(make, tmp_path) -> None:
    model = make("MODEL.REGIONCLIP.TEACHER_PRETRAINED", "emoji")
    assert model.teacher.name == model.student.name
    assert not same(model.student, model.teacher)


def test_a_teacher_without_weights_is_refused(make) -> None:
    trained = ("MODEL.CLIP.PRETRAINED", "emoji", "MODEL.REGIONCLIP.TEACHER_NAME")
    with pytest.raises(ValueError, match=r"TEACHER_NAME is 'RN50-quickgelu' .*TEACHER_PRETRAINED"):
        make(*trained, "RN50-quickgelu")
    model = make(*trained, "ViT-Ti-8-emoji")
    assert same(model.student, model.teacher)


def test_keys_reach_the_switches(make, monkeypatch) -> None:
    monkeypatch.setattr(regionclip_build, "_proposal_network", lambda cfg: torch.nn.Identity())
    keys = "MODEL.REGIONCLIP."
    model = make(
        *(keys + "LOSS_WEIGHTS", [2.0, 3.0, 4.0], keys + "TEACHER_REGIONS", "crop"),
        *("INPUT.REGIONS.SOURCE", "rpn", "INPUT.REGIONS.MAX_BOXES", 9),
        *("INPUT.REGIONS.CROP_ENLARGE", 1.25),
    )
    assert model.weights == LossWeights(distill=2.0, contrastive=3.0, image_text=4.0)
    assert model.teacher_regions == "crop"
    proposer = model.proposer
    assert (proposer.max_regions, proposer.seed, proposer.crop_enlarge) == (9, 7, 1.25)


def test_the_concepts_embeddings_may_be_given_as_a_file(make, tmp_path) -> None:
    def embeddings(names: list[str], width: int = 128, clip: str = "ViT-Ti-8-emoji") -> str:
        rows = F.normalize(torch.arange(1.0, 2 * width + 1).view(2, width), dim=1)
        file = tmp_path / "table.pt"
        TextEmbeddings(Vocabulary.from_names(names), rows, None, clip, "single").save(file)
        return str(file)

    key = "MODEL.VOCABULARY.EMBEDDINGS"
    given = make(key, embeddings(["dog", "cat"]))
    expected = TextEmbeddings.load(tmp_path / "table.pt").embeddings_KD
    torch.testing.assert_close(given.concepts_CD, expected)
    torch.testing.assert_close(given.teacher_concepts_CD, expected)
    with pytest.raises(ValueError, match=r"table\.pt .*names differ \('cat' instead of 'dog'"):
        make(key, embeddings(["cat", "dog"]))
    with pytest.raises(ValueError, match="64-d but the tower projects to 128-d"):
        make(key, embeddings(["dog", "cat"], width=64))
    with pytest.raises(ValueError, match="come from ViT-S-32-alt"):
        make(key, embeddings(["dog", "cat"], clip="ViT-S-32-alt"))


def test_losses_have_three_weights(make) -> None:
    with pytest.raises(ValueError, match=r"LOSS_WEIGHTS is \[1\.0, 1\.0\]; it takes three"):
        make("MODEL.REGIONCLIP.LOSS_WEIGHTS", [1.0, 1.0])


def test_a_missing_pool_names_the_tool(make) -> None:
    with pytest.raises(ValueError, match=r"REGIONCLIP\.CONCEPTS is empty.*build_concept_pool\.py"):
        make("MODEL.REGIONCLIP.CONCEPTS", "")


def test_an_rpn_without_its_files_names_the_keys(make) -> None:
    with pytest.raises(ValueError, match="FROZEN_RPN.CONFIG and WEIGHTS"):
        make("INPUT.REGIONS.SOURCE", "rpn")
