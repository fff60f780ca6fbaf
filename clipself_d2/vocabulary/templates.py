"""Prompt templates by name, and how a class name is put into them."""

import re
from collections.abc import Sequence


def _sentences(text: str) -> tuple[str, ...]:
    """Cut a text behind every full stop, in order: embeddings are means, summed in this order."""
    return tuple(re.findall(r"\S[^.]*\.", text))


SINGLE = ("a photo of {article} {}.",)

# The one prompt of CAT-Seg, arXiv 2303.11797.
CATSEG = ("A photo of a {} in the scene",)

EMOJI = _sentences(
    """
    {article} {}. a photo of {article} {}. a picture of {article} {}. a drawing of {article} {}.
    an emoji of {article} {}. a small {}. a large {}. there is {article} {} in the scene.
    """
)

# The prompts of ViLD (arXiv 2104.13921), which F-ViT and CLIPSelf use.
VILD = _sentences(
    """
    There is {article} {} in the scene. There is the {} in the scene.
    a photo of {article} {} in the scene. a photo of the {} in the scene.
    a photo of one {} in the scene. itap of {article} {}. itap of my {}. itap of the {}.
    a photo of {article} {}. a photo of my {}. a photo of the {}. a photo of one {}.
    a photo of many {}. a good photo of {article} {}. a good photo of the {}.
    a bad photo of {article} {}. a bad photo of the {}. a photo of a nice {}.
    a photo of the nice {}. a photo of a cool {}. a photo of the cool {}. a photo of a weird {}.
    a photo of the weird {}. a photo of a small {}. a photo of the small {}. a photo of a large {}.
    a photo of the large {}. a photo of a clean {}. a photo of the clean {}. a photo of a dirty {}.
    a photo of the dirty {}. a bright photo of {article} {}. a bright photo of the {}.
    a dark photo of {article} {}. a dark photo of the {}. a photo of a hard to see {}.
    a photo of the hard to see {}. a low resolution photo of {article} {}.
    a low resolution photo of the {}. a cropped photo of {article} {}. a cropped photo of the {}.
    a close-up photo of {article} {}. a close-up photo of the {}.
    a jpeg corrupted photo of {article} {}. a jpeg corrupted photo of the {}.
    a blurry photo of {article} {}. a blurry photo of the {}. a pixelated photo of {article} {}.
    a pixelated photo of the {}. a black and white photo of the {}.
    a black and white photo of {article} {}. a plastic {}. the plastic {}. a toy {}. the toy {}.
    a plushie {}. the plushie {}. a cartoon {}. the cartoon {}. an embroidered {}.
    the embroidered {}. a painting of the {}. a painting of a {}.
    """
)

# The 80 prompts of CLIP (arXiv 2103.00020) for ImageNet. Differs: "an" before vowels.
IMAGENET80 = _sentences(
    """
    a bad photo of {article} {}. a photo of many {}. a sculpture of {article} {}.
    a photo of the hard to see {}. a low resolution photo of the {}. a rendering of {article} {}.
    graffiti of {article} {}. a bad photo of the {}. a cropped photo of the {}.
    a tattoo of {article} {}. the embroidered {}. a photo of a hard to see {}.
    a bright photo of {article} {}. a photo of a clean {}. a photo of a dirty {}.
    a dark photo of the {}. a drawing of {article} {}. a photo of my {}. the plastic {}.
    a photo of the cool {}. a close-up photo of {article} {}. a black and white photo of the {}.
    a painting of the {}. a painting of {article} {}. a pixelated photo of the {}.
    a sculpture of the {}. a bright photo of the {}. a cropped photo of {article} {}. a plastic {}.
    a photo of the dirty {}. a jpeg corrupted photo of {article} {}. a blurry photo of the {}.
    a photo of the {}. a good photo of the {}. a rendering of the {}. {article} {} in a video game.
    a photo of one {}. a doodle of {article} {}. a close-up photo of the {}.
    a photo of {article} {}. the origami {}. the {} in a video game. a sketch of {article} {}.
    a doodle of the {}. a origami {}. a low resolution photo of {article} {}. the toy {}.
    a rendition of the {}. a photo of the clean {}. a photo of a large {}.
    a rendition of {article} {}. a photo of a nice {}. a photo of a weird {}.
    a blurry photo of {article} {}. a cartoon {}. art of {article} {}. a sketch of the {}.
    a embroidered {}. a pixelated photo of {article} {}. itap of the {}.
    a jpeg corrupted photo of the {}. a good photo of {article} {}. a plushie {}.
    a photo of the nice {}. a photo of the small {}. a photo of the weird {}. the cartoon {}.
    art of the {}. a drawing of the {}. a photo of the large {}.
    a black and white photo of {article} {}. the plushie {}. a dark photo of {article} {}.
    itap of {article} {}. graffiti of the {}. a toy {}. itap of my {}. a photo of a cool {}.
    a photo of a small {}. a tattoo of the {}.
    """
)

# RegionCLIP, arXiv 2112.09106: CLIP's 80 sentences with "a" before every name, and the bare name.
REGIONCLIP81 = (*(template.replace("{article}", "a") for template in IMAGENET80), "{}.")

_TEMPLATES = {
    "single": SINGLE,
    "vild": VILD,
    "imagenet80": IMAGENET80,
    "regionclip81": REGIONCLIP81,
    "emoji": EMOJI,
    "catseg": CATSEG,
}
# Other names of a set, by which papers call it.
_ALIASES = {"vild63": "vild"}
# ViLD's sentences that are mere noun phrases are made whole.
_COMPLETED = frozenset({"vild"})
# All that a prompt set may be called.
TEMPLATE_NAMES = (*_TEMPLATES, *_ALIASES)


def template_name(name: str) -> str:
    """Give the one name of a prompt set, under which embeddings are kept."""
    resolved = _ALIASES.get(name, name)
    if resolved not in _TEMPLATES:
        raise ValueError(f"prompt set {name!r} is unknown; it is one of {sorted(TEMPLATE_NAMES)}")
    return resolved


def get_templates(name: str) -> tuple[str, ...]:
    """Look up a prompt set, with ``{}`` for the class name and, for some, ``{article}``."""
    name = template_name(name)
    if name in _COMPLETED:
        return tuple(_complete(template) for template in _TEMPLATES[name])
    return _TEMPLATES[name]


def _complete(template: str) -> str:
    return f"This is {template}" if template.startswith(("a", "the")) else template


def clean_name(name: str) -> str:
    """Turn a data set's class name, such as ``traffic_light`` or ``cup/mug``, into words.

    Lower-case words; ``_`` is a space, ``/`` is "or", a full stop at the end is dropped.

    Reference: the published prompt tool of CLIPSelf, arXiv 2310.01403. Differs: the article follows
    the cleaned name, so that "Apple" is "an apple" too.
    """
    return name.replace("_", " ").replace("/", " or ").lower().rstrip(".").strip()


def fill_templates(name: str, templates: Sequence[str]) -> tuple[str, ...]:
    """Put a class name into templates of ``get_templates``: one sentence a template."""
    words = clean_name(name)
    article = "an" if words[:1] in tuple("aeiou") else "a"
    return tuple(
        template.replace("{article}", article).replace("{}", words) for template in templates
    )
