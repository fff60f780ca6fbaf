"""Other classes for a model, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from clipself_d2.layers.segment_classifier import SegmentTextClassifier
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.vocabulary.embeddings import TextEmbeddings


@contextmanager
def use_vocabulary(model: nn.Module, embeddings: TextEmbeddings) -> Iterator[None]:
    """Give every text classifier of a model other classes for the time of a with block.

    A model with a text tower of its own has a method ``embed_vocabulary``, from embeddings to those
    of its tower, which is asked first. The former classes are back afterwards, also after an error.
    A ValueError says that the model has no text classifier, or that the width is not the model's.
    """
    classifiers = [module for module in model.modules() if isinstance(module, TextClassifier)]
    if not classifiers:
        raise ValueError(f"{type(model).__name__} has no text classifier to give classes to")
    embed_vocabulary = getattr(model, "embed_vocabulary", None)
    if embed_vocabulary is not None:
        embeddings = embed_vocabulary(embeddings)
    for classifier in classifiers:
        embeddings.check(classifier.embed_dim)
    former = [classifier.get_embeddings() for classifier in classifiers]
    vocabulary = embeddings.vocabulary
    base_mask = torch.tensor(vocabulary.base_mask)
    things = torch.tensor(vocabulary.thing_mask or (True,) * vocabulary.num_classes)
    words = {
        classifier: classifier.get_words()
        for classifier in classifiers
        if isinstance(classifier, SegmentTextClassifier)
    }
    try:
        for classifier in classifiers:
            classifier.set_embeddings(embeddings.embeddings_KD, base_mask, embeddings.background_D)
            if isinstance(classifier, SegmentTextClassifier):
                classifier.set_words(*embeddings.by_word(), things)
        yield
    finally:
        for classifier, state in zip(classifiers, former, strict=True):
            classifier.set_embeddings(*state)
            if isinstance(classifier, SegmentTextClassifier):
                classifier.set_words(*words[classifier])
