"""Classification of masks by their best word, things and stuff apart.

Legend: Q masks, K classes, W words, D joint embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_d2.layers.text_classifier import TextClassifier


class SegmentTextClassifier(TextClassifier):
    """Scaled cosines of masks to the best word of every class; a learned vector for void, last.

    Args:
        embeddings_KD: (K, D) class embeddings; normalised here.
        base_mask_K: (K,) True for classes with training masks.
        background: (D,) start value of void.
        words_WD: (W, D) unit embeddings of words; None takes the classes' own, a word each.
        word_class_W: (W,) int64 number of every word's class.
        thing_mask_K: (K,) True for things, False for stuff; None: all are things.
        scale: Multiplier of the cosine, > 0; CLIP's own is 100.

    Raises:
        ValueError: If shapes disagree or a class has no word.

    Reference: the maximum over synonyms and the void vector of FC-CLIP, arXiv 2308.02487.
    """

    words_WD: Tensor
    word_class_W: Tensor
    thing_mask: Tensor

    def __init__(
        self,
        *,
        embeddings_KD: Tensor,
        base_mask_K: Tensor,
        background: Tensor | None,
        words_WD: Tensor | None = None,
        word_class_W: Tensor | None = None,
        thing_mask_K: Tensor | None = None,
        scale: float = 100.0,
    ) -> None:
        super().__init__(
            embeddings_KD=embeddings_KD,
            base_mask_K=base_mask_K,
            background=background,
            background_mode="learned",
            scale=scale,
            learn_scale=False,
        )
        count = self.num_classes
        for name, kind in (("words_WD", torch.float), ("word_class_W", torch.long)):
            self.register_buffer(name, torch.empty(0, dtype=kind), persistent=False)
        self.register_buffer("thing_mask", torch.empty(0, dtype=torch.bool), persistent=False)
        if words_WD is None or word_class_W is None:
            words_WD, word_class_W = self.embeddings_KD, torch.arange(count)
        if thing_mask_K is None:
            thing_mask_K = torch.ones(count, dtype=torch.bool)
        self.set_words(words_WD, word_class_W, thing_mask_K)

    def set_words(self, words_WD: Tensor, word_class_W: Tensor, thing_mask_K: Tensor) -> None:
        """Replace the words behind the classes that ``set_embeddings`` gave.

        (W, D) unit embeddings, the (W,) number of every word's class, and (K,) True for things.
        """
        count = self.num_classes
        got, expected = tuple(words_WD.shape), (len(word_class_W), self.embed_dim)
        if got != expected:
            raise ValueError(f"words have shape {got}, expected {expected}")
        if set(word_class_W.tolist()) != set(range(count)) or len(thing_mask_K) != count:
            raise ValueError(
                f"words and kinds are needed for every one of {count} classes; got words of "
                f"{len(set(word_class_W.tolist()))} and {len(thing_mask_K)} kinds"
            )
        device = self.embeddings_KD.device
        self.words_WD = words_WD.detach().float().to(device)
        self.word_class_W = word_class_W.to(device)
        self.thing_mask = thing_mask_K.bool().to(device)

    def get_words(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``set_words`` takes to come back to the present words."""
        return self.words_WD, self.word_class_W, self.thing_mask

    def cosine(self, region_RD: Tensor) -> Tensor:
        """Cosines of (..., D) to the best word of every class: (..., K + 1), void last."""
        with torch.autocast(region_RD.device.type, enabled=False):
            unit = F.normalize(region_RD.float(), dim=-1)
            words = unit @ self.words_WD.T
            # The maximum over each class's words; every class has one, so that no -inf is left.
            best = words.new_full((*words.shape[:-1], self.num_classes), -torch.inf)
            index = self.word_class_W.expand_as(words)
            best = best.scatter_reduce(-1, index, words, "amax")
            void = unit @ self.background_embedding().float()
            return torch.cat([best, void[..., None]], dim=-1)
