"""Parts of a CAT-Seg for LazyConfig, which builds them without a yaml file."""

from clipself_d2.clip import VisionTower, load_clip, load_tower
from clipself_d2.parts.dense_form import set_form
from clipself_d2.parts.text_embeddings import semantic_vocabulary
from clipself_d2.segmentation.words import LearnedWords
from clipself_d2.vocabulary import TextEmbeddings


def learning_tower(
    *,
    name: str,
    weights: str | None,
    trained_blocks: int = -1,
    trained_parts: str = "query_value",
    dense_form: str = "clipself",
    any_form: bool = False,
) -> VisionTower:
    """Load an image tower whose last blocks learn.

    Args:
        name: Name of the CLIP.
        weights: Its pretrained tag or a file, such as a distilled student; None for random weights.
        trained_blocks: Number of last blocks that learn; -1 for all.
        trained_parts: What of them learns: "query_value", "attention" or "all".
        dense_form: Name of the form of dense features, of ``clip.towers.dense_form``.
        any_form: Whether weights that were trained in another form may be run in this one.

    Returns:
        The tower.
    """
    tower = load_tower(name, weights)
    set_form(tower, dense_form, any_form=any_form)
    tower.freeze(trained_blocks, parts=trained_parts)
    return tower


def learning_words(
    *,
    name: str,
    weights: str | None,
    dataset: str,
    templates: str = "catseg",
    trained_blocks: int = -1,
    trained_parts: str = "query_value",
) -> LearnedWords:
    """Load a text tower that learns, with the classes of a registered semantic data set.

    ``weights`` has a whole CLIP; what learns is as of ``learning_tower``.
    """
    text = load_clip(name, weights).text
    text.freeze(trained_blocks, parts=trained_parts)
    return LearnedWords(
        text=text, vocabulary=semantic_vocabulary(dataset), templates=templates, clip=name
    )


def semantic_embeddings(
    *, name: str, weights: str | None, dataset: str, templates: str = "catseg"
) -> TextEmbeddings:
    """Build the text embeddings of a semantic data set's classes, as of ``learning_words``."""
    return TextEmbeddings.load_or_build(
        semantic_vocabulary(dataset), clip=name, weights=weights, templates=templates
    )
