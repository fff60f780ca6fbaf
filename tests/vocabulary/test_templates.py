"""Prompt sets against their publications, and class names in sentences."""

import pytest
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from clipself_d2.vocabulary import fill_templates, get_templates
from clipself_d2.vocabulary.templates import clean_name, template_name


@pytest.mark.parametrize(
    ("name", "count"), [("single", 1), ("vild", 63), ("imagenet80", 80), ("emoji", 8)]
)
def test_sets_have_their_published_number_of_different_prompts(name: str, count: int) -> None:
    templates = get_templates(name)
    assert len(templates) == len(set(templates)) == count
    for word in ("cat", "apple"):
        sentences = fill_templates(word, templates)
        assert len(sentences) == count
        assert all(word in sentence for sentence in sentences)
        assert not any("{" in sentence for sentence in sentences)


def test_58_prompts_of_vild_are_completed_to_sentences() -> None:
    templates = get_templates("vild")
    completed = [template for template in templates if template.startswith("This is ")]
    assert len(completed) == 58
    assert all(template.removeprefix("This is ")[0] in "at" for template in completed)
    others = [template for template in templates if template not in completed]
    assert all(template.startswith(("itap", "There is")) for template in others)


def test_vild_sentences_are_those_of_the_publication() -> None:
    sentences = fill_templates("traffic_light", get_templates("vild"))
    assert sentences[0] == "There is a traffic light in the scene."
    assert sentences[5] == "itap of a traffic light."
    assert sentences[2] == "This is a photo of a traffic light in the scene."
    assert sentences[-1] == "This is a painting of a traffic light."


def test_imagenet_prompts_are_open_clips_before_a_consonant() -> None:
    expected = tuple(template("cat") for template in OPENAI_IMAGENET_TEMPLATES)
    assert fill_templates("cat", get_templates("imagenet80")) == expected


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cat", "a photo of a cat."),
        ("apple", "a photo of an apple."),
        ("Umbrella", "a photo of an umbrella."),
        ("fire_engine", "a photo of a fire engine."),
        ("egg/omelette", "a photo of an egg or omelette."),
        ("wall-other-merged", "a photo of a wall-other-merged."),
        ("crate (box).", "a photo of a crate (box)."),
    ],
)
def test_article_fits_the_name(name: str, sentence: str) -> None:
    assert fill_templates(name, get_templates("single")) == (sentence,)


def test_emoji_prompts_have_the_article_of_the_name() -> None:
    sentences = fill_templates("owl", get_templates("emoji"))
    expected = ("an owl.", "an emoji of an owl.", "a small owl.")
    assert (sentences[0], sentences[4], sentences[5]) == expected


def test_name_is_cleaned_to_words() -> None:
    assert clean_name("Cup/mug_holder.") == "cup or mug holder"


def test_vild63_is_another_name_of_vild() -> None:
    assert get_templates("vild63") == get_templates("vild")
    assert template_name("vild63") == template_name("vild") == "vild"
    with pytest.raises(ValueError, match=r"'vild64' is unknown.*imagenet80.*'vild63'"):
        template_name("vild64")


def test_regionclip81_is_clips_80_sentences_with_a_plain_article_and_the_bare_name() -> None:
    sentences = fill_templates("owl", get_templates("regionclip81"))
    assert len(sentences) == 81
    assert set(sentences) == {template("owl") for template in OPENAI_IMAGENET_TEMPLATES} | {"owl."}
