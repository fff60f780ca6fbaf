"""Words, negative words and thresholds become a set, which a file keeps."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances

from clipself_d2.apps.predict.prompts import (
    ClassPrompt,
    PromptSet,
    add_negative,
    parse_classes,
    parse_prompts,
    parse_typed_classes,
)
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary


def test_semicolons_part_synonyms() -> None:
    vocabulary = parse_classes([" police car ; squad car;", "owl", "dog;puppy;dog"])
    assert vocabulary.names == ("police car", "owl", "dog")
    assert vocabulary.synonyms == (("squad car",), (), ("puppy",))
    assert vocabulary.base_mask == (True, True, True)
    assert parse_classes(["cat", "dog"]).synonyms == ()


@pytest.mark.parametrize("entries", [[], ["", " ; "]])
def test_no_class_is_refused(entries: list[str]) -> None:
    with pytest.raises(ValueError, match="there is no class"):
        parse_classes(entries)


@pytest.mark.parametrize("entries", ["dog", {"dog", "owl"}, {"dog": 1}, None])
def test_what_is_no_list_is_refused(entries: object) -> None:
    with pytest.raises(ValueError, match="a list of texts"):
        parse_classes(entries)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (["dog", "", "owl"], "entry 1 of the classes is blank"),
        (["dog", "owl", " ; "], "entry 2 of the classes is blank"),
        (["dog", "owl", "dog;puppy"], r"repeats \['dog'\]"),
        (["dog", 1], "classes are texts, got 1"),
        ([None], "classes are texts, got None"),
    ],
)
def test_no_class_changes_its_place(entries: list, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_classes(entries)


def test_typed_classes_stand_between_commas() -> None:
    assert parse_typed_classes(" police car, dog;puppy, ").names == ("police car", "dog")
    with pytest.raises(ValueError, match="entry 1 of the classes is blank"):
        parse_typed_classes("dog,,owl")


def test_prompts_and_words_stand_side_by_side() -> None:
    vocabulary, prompts = parse_prompts(["dog;puppy", ClassPrompt("owl;bird", min_score=0.4)])
    assert vocabulary.words == (("dog", "puppy"), ("owl", "bird"))
    assert [prompt.min_score for prompt in prompts] == [None, 0.4]
    with pytest.raises(ValueError, match="'owl' is 1.5; it must be in"):
        parse_prompts([ClassPrompt("owl", min_score=1.5)])
    with pytest.raises(ValueError, match="neither words nor references"):
        parse_prompts([ClassPrompt("owl", words=False)])


def test_negative_words_stand_behind_the_classes() -> None:
    plain = Vocabulary(("dog", "sky"), (True, False), thing_mask=(True, False))
    both = add_negative(plain, ["toy;doll"])
    assert both.words == (("dog",), ("sky",), ("toy", "doll"))
    assert both.base_mask == (True, False, True)
    assert both.thing_mask == (True, False, True)
    assert add_negative(plain, []) is plain
    with pytest.raises(ValueError, match="repeats"):
        add_negative(plain, ["dog"])


def make_set(num_negative: int = 1, min_scores=(None, 0.6)) -> PromptSet:
    names = ("dog", "owl", "toy")[: 2 + num_negative]
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(len(names), 8, generator=generator), dim=1)
    vocabulary = Vocabulary(names, (True,) * len(names), synonyms=(("puppy",), (), ()))
    words = F.normalize(torch.randn(len(names) + 1, 8, generator=generator), dim=1)
    embeddings = TextEmbeddings(vocabulary, rows, rows[0], "clip", "vild", "tag", words)
    return PromptSet(embeddings, min_scores, (0, 3))


def found(boxes, scores, classes) -> Instances:
    return Instances(
        (20, 20),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
    )


def test_negative_boxes_go_and_take_what_scores_less_at_their_place() -> None:
    place, other = [0.0, 0.0, 10.0, 10.0], [12.0, 0.0, 20.0, 10.0]
    boxes = found([place, place, other, place], [0.3, 0.7, 0.2, 0.5], [0, 1, 0, 2])
    kept = make_set().report({"instances": boxes}, 0.1)["instances"]
    assert kept.scores.tolist() == pytest.approx([0.7, 0.2])
    # Nothing overlaps it: the negative box alone goes.
    apart = found([other, place], [0.3, 0.5], [0, 2])
    assert len(make_set().report({"instances": apart}, 0.1)["instances"]) == 1


def test_a_class_has_its_own_threshold() -> None:
    place = [0.0, 0.0, 10.0, 10.0]
    boxes = found([place] * 4, [0.3, 0.1, 0.7, 0.5], [0, 0, 1, 1])
    kept = make_set().report({"instances": boxes}, 0.2)["instances"]
    assert kept.scores.tolist() == pytest.approx([0.3, 0.7])


def test_segments_of_negative_words_go() -> None:
    scores = torch.tensor([[[0.9, 0.1]], [[0.2, 0.3]], [[0.1, 0.5]]])
    ids = torch.tensor([[1, 2]])
    rows = [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 2}]
    result = make_set().report({"sem_seg": scores, "panoptic_seg": (ids, rows)})
    assert torch.equal(result["sem_seg"], torch.tensor([[[0.9, 0.0]], [[0.2, 0.0]]]))
    assert result["panoptic_seg"][0].tolist() == [[1, 0]]
    assert result["panoptic_seg"][1] == rows[:1]


def test_a_set_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    prompts, path = make_set(), tmp_path / "sets" / "pets.safetensors"
    prompts.save(path)
    loaded = PromptSet.load(path)
    assert torch.equal(loaded.embeddings.embeddings_KD, prompts.embeddings.embeddings_KD)
    assert torch.equal(loaded.embeddings.words_WD, prompts.embeddings.words_WD)
    assert torch.equal(loaded.embeddings.background_D, prompts.embeddings.background_D)
    assert loaded.embeddings.vocabulary == prompts.embeddings.vocabulary
    assert (loaded.min_scores, loaded.references) == ((None, 0.6), (0, 3))
    assert (loaded.embeddings.clip, loaded.embeddings.templates) == ("clip", "vild")
    assert loaded.names == ("dog", "owl")


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pets.safetensors"
    make_set().save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its hash is not that of its content"):
        PromptSet.load(path)
    path.write_bytes(b"no such file")
    with pytest.raises(ValueError, match="is damaged or no such file"):
        PromptSet.load(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        PromptSet.load(tmp_path / "gone.safetensors")


def test_a_set_of_another_clip_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="made with clip, but MODEL.CLIP.NAME is other"):
        make_set().check("other", "tag")
    with caplog.at_level("WARNING"):
        make_set().check("clip", "another")
    assert "made with tag, but MODEL.CLIP.PRETRAINED is another" in caplog.text
