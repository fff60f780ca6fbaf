"""Classes as data, their prompts and their text embeddings."""

from clipself_d2.vocabulary.embeddings import TextEmbeddings
from clipself_d2.vocabulary.switch import use_vocabulary
from clipself_d2.vocabulary.templates import fill_templates, get_templates
from clipself_d2.vocabulary.vocabulary import Vocabulary

__all__ = ["TextEmbeddings", "Vocabulary", "fill_templates", "get_templates", "use_vocabulary"]
