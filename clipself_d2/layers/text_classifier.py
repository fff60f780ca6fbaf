"""Classification of regions by the cosine to text embeddings.

Legend: R regions, K classes, D joint embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKGROUND_MODES = ("text", "learned", "zero")
# Vectors whose norm is this close to 1 are taken as they are.
_UNIT_TOLERANCE = 1e-5
# A CPU multiplies with so many classes at once about 1.6 times as fast as with 13,204.
_COLUMNS = 1024


class TextClassifier(nn.Module):
    """Scaled cosines of regions to class embeddings, background last.

    The class embeddings are buffers outside the checkpoint, changed by ``set_embeddings`` alone.

    Args:
        embeddings_KD: (K, D) class embeddings; normalised here.
        base_mask_K: (K,) True for classes with training boxes.
        background: (D,) embedding of the prompted word background; needed for the mode text and, as
            the start value, learned.
        background_mode: "text", "learned" (a trained vector) or "zero" (cosine 0).
        scale: Multiplier of the cosine, > 0; the start value where it is learned.
        learn_scale: Whether the multiplier is a parameter.

    Raises:
        ValueError: If the mode is unknown, shapes disagree or the background's embedding lacks.
    """

    embeddings_KD: Tensor
    base_mask: Tensor
    base_numbers: Tensor
    background: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        embeddings_KD: Tensor,
        base_mask_K: Tensor,
        background: Tensor | None,
        background_mode: str = "text",
        scale: float = 50.0,
        learn_scale: bool = True,
    ) -> None:
        super().__init__()
        if background_mode not in BACKGROUND_MODES:
            raise ValueError(f"background_mode is {background_mode!r}, not in {BACKGROUND_MODES}")
        self.background_mode = background_mode
        self.embed_dim = int(embeddings_KD.shape[-1])
        multiplier = torch.tensor(float(scale))
        if learn_scale:
            self.scale = nn.Parameter(multiplier)
        else:
            self.register_buffer("scale", multiplier, persistent=False)
        if background_mode == "learned":
            if background is None:
                raise ValueError(
                    "a learned background starts from its text embedding, of which there is none; "
                    "rebuild the embeddings"
                )
            self.learned_background = nn.Parameter(_unit(background))
        self.register_buffer("embeddings_KD", torch.empty(0, self.embed_dim), persistent=False)
        self.register_buffer("base_mask", torch.empty(0, dtype=torch.bool), persistent=False)
        self.register_buffer("base_numbers", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("background", torch.zeros(self.embed_dim), persistent=False)
        self.set_embeddings(embeddings_KD, base_mask_K, background)

    @property
    def num_classes(self) -> int:
        """Number K of classes, background not counted."""
        return self.embeddings_KD.shape[0]

    def set_embeddings(
        self, embeddings_KD: Tensor, base_mask: Tensor, background: Tensor | None
    ) -> None:
        """Replace the classes: (K, D), normalised here, (K,) bool, and (D,) or None.

        A ValueError says that shapes disagree, a value is not finite, or the background mode "text"
        lacks its embedding; the present classes are then kept.
        """
        shape = tuple(embeddings_KD.shape)
        if len(shape) != 2 or shape[0] < 1 or shape[1] != self.embed_dim:
            raise ValueError(
                f"class embeddings have shape {shape}, expected (K, {self.embed_dim}) with K >= 1"
            )
        if tuple(base_mask.shape) != shape[:1]:
            raise ValueError(f"base mask has shape {tuple(base_mask.shape)} for {shape[0]} classes")
        if background is None and self.background_mode == "text":
            raise ValueError("text embeddings have no background; rebuild them, or make it zero")
        if background is None:
            background = torch.zeros_like(self.background)
        if not (embeddings_KD.isfinite().all() and background.isfinite().all()):
            raise ValueError("text embeddings hold values that are not finite; rebuild them")
        device = self.embeddings_KD.device
        self.embeddings_KD = _unit(embeddings_KD).to(device)
        self.base_mask = base_mask.detach().bool().to(device)
        self.base_numbers = self.base_mask.nonzero()[:, 0]
        self.background = _unit(background).to(device)

    def get_embeddings(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``set_embeddings`` takes to come back; an unset background is zeros."""
        return self.embeddings_KD, self.base_mask, self.background

    def background_embedding(self) -> Tensor:
        """Return the background's row, (D,) of unit norm, or zeros in the mode "zero"."""
        if self.background_mode == "zero":
            return torch.zeros_like(self.background)
        if self.background_mode == "learned":
            return F.normalize(self.learned_background, dim=0)
        return self.background

    def cosine(self, region_RD: Tensor) -> Tensor:
        """Cosines of (R, D), any norm, without the scale: (R, K + 1) float32, background last."""
        # Mixed precision would round the cosine to 8 or 11 bits, and the scale multiply that.
        with torch.autocast(region_RD.device.type, enabled=False):
            region = F.normalize(region_RD.float(), dim=-1)
            classes, background = self.embeddings_KD.float(), self.background_embedding()[None]
            # In parts on a CPU without gradients alone: a GPU gains nothing by it.
            trains = torch.is_grad_enabled() or region.is_cuda
            if trains or self.num_classes <= _COLUMNS:
                return region @ torch.cat([classes, background.float()]).T
            cosine = region.new_empty(*region.shape[:-1], self.num_classes + 1)
            for first in range(0, self.num_classes, _COLUMNS):
                columns = slice(first, min(first + _COLUMNS, self.num_classes))
                cosine[..., columns] = region @ classes[columns].T
            cosine[..., -1:] = region @ background.float().T
            return cosine

    def forward(self, region_RD: Tensor) -> Tensor:
        """Score regions (R, D), any norm: (R, K + 1) float32 logits, background last; R may be 0.

        Reference: F-ViT's classifier, CLIPSelf, arXiv 2310.01403, section 4.1; the background's
        prompted word is scored like a class.
        """
        cosine = self.cosine(region_RD)
        # Without gradients in place, which saves a copy of the size of the vocabulary.
        return self.scale * cosine if torch.is_grad_enabled() else cosine.mul_(self.scale)

    def extra_repr(self) -> str:
        """Describe the classifier in the printed model."""
        scale = self.scale.item()
        return f"D={self.embed_dim}, background={self.background_mode}, scale={scale:.4g}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *others: object
    ) -> None:
        # Checkpoints used to call the multiplier temperature.
        if f"{prefix}temperature" in state_dict:
            state_dict[f"{prefix}scale"] = state_dict.pop(f"{prefix}temperature")
        super()._load_from_state_dict(state_dict, prefix, *others)


class SigmoidTextClassifier(TextClassifier):
    """Scaled and shifted cosines of regions to class embeddings, without a background.

    Classes are independent: a background region scores low for every one of them.

    Args:
        embeddings_KD: (K, D) class embeddings; normalised here.
        base_mask_K: (K,) True for classes with training boxes.
        prior: Probability, in (0, 1), at the start for a region whose cosine is 0; gives the
            learned shift.
        scale: Multiplier of the cosine, > 0; the start value where it is learned.
        learn_scale: Whether the multiplier is a parameter.

    Raises:
        ValueError: If the prior is not inside (0, 1), or as the parent does.

    Reference: sigmoid over scaled cosines to CLIP's text embeddings, Detic, arXiv 2201.02605; the
    prior of RetinaNet, arXiv 1708.02002, section 3.3.
    """

    def __init__(
        self,
        *,
        embeddings_KD: Tensor,
        base_mask_K: Tensor,
        prior: float = 0.01,
        scale: float = 50.0,
        learn_scale: bool = True,
    ) -> None:
        super().__init__(
            embeddings_KD=embeddings_KD,
            base_mask_K=base_mask_K,
            background=None,
            background_mode="zero",
            scale=scale,
            learn_scale=learn_scale,
        )
        self.shift = nn.Parameter(torch.tensor(-math.log((1 - prior) / prior)))

    def forward(self, region_RD: Tensor) -> Tensor:
        """Score regions (R, D), any norm: (R, K) float32 logits of independent classes."""
        return self.scale * self.cosine(region_RD)[..., :-1] + self.shift


def _unit(vectors: Tensor) -> Tensor:
    """Normalise the last axis; what has unit norm is kept bit for bit, so that a reset is exact."""
    vectors = vectors.detach().float()
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    is_unit = (norm - 1).abs() <= _UNIT_TOLERANCE
    return torch.where(is_unit, vectors, F.normalize(vectors, dim=-1))
