"""Classification of regions by the cosine to text embeddings.

Legend: R regions, K classes, D joint embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKGROUND_MODES = ("text", "learned", "zero")


class TextClassifier(nn.Module):
    """Scaled cosines of regions to class embeddings, background last.

    The class embeddings are buffers outside the checkpoint, changed by ``set_embeddings`` alone.

    Args:
        embeddings_KD: (K, D) class embeddings; normalised here.
        base_mask_K: (K,) True for classes with training boxes.
        background_D: (D,) embedding of the word background; needed for the modes text and, as the
            start value, learned.
        background_mode: "text", "learned" (a trained vector) or "zero" (cosine 0).
        temperature: Multiplier of the cosine, > 0; the start value where it is learned.
        learn_temperature: Whether the multiplier is a parameter.

    Raises:
        ValueError: If the mode is unknown, shapes disagree or the background's embedding lacks.
    """

    embeddings_KD: Tensor
    base_mask_K: Tensor
    background_D: Tensor

    def __init__(
        self,
        *,
        embeddings_KD: Tensor,
        base_mask_K: Tensor,
        background_D: Tensor | None,
        background_mode: str = "text",
        temperature: float = 50.0,
        learn_temperature: bool = True,
    ) -> None:
        super().__init__()
        if background_mode not in BACKGROUND_MODES:
            raise ValueError(
                f"background is {background_mode!r}; MODEL.OPEN_VOCAB.BACKGROUND is one of "
                f"{BACKGROUND_MODES}"
            )
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; MODEL.OPEN_VOCAB.TEMPERATURE is > 0")
        self.background_mode = background_mode
        self.embed_dim = int(embeddings_KD.shape[1])
        scale = torch.tensor(float(temperature))
        if learn_temperature:
            self.temperature = nn.Parameter(scale)
        else:
            self.register_buffer("temperature", scale, persistent=False)
        if background_mode == "learned":
            if background_D is None:
                raise ValueError("a learned background starts from a text embedding; got None")
            self.learned_background_D = nn.Parameter(F.normalize(background_D.float(), dim=0))
        self.register_buffer("embeddings_KD", torch.empty(0, self.embed_dim), persistent=False)
        self.register_buffer("base_mask_K", torch.empty(0, dtype=torch.bool), persistent=False)
        self.register_buffer("background_D", torch.zeros(self.embed_dim), persistent=False)
        self.set_embeddings(embeddings_KD, base_mask_K, background_D)

    @property
    def num_classes(self) -> int:
        """Number K of classes, background not counted."""
        return int(self.embeddings_KD.shape[0])

    def set_embeddings(
        self, embeddings_KD: Tensor, base_mask_K: Tensor, background_D: Tensor | None
    ) -> None:
        """Replace the classes.

        Args:
            embeddings_KD: (K, D), any K >= 1; normalised here.
            base_mask_K: (K,) bool.
            background_D: (D,), or None where the background mode is not "text".

        Raises:
            ValueError: If shapes disagree or the background's embedding lacks.
        """
        if embeddings_KD.ndim != 2 or embeddings_KD.shape[1] != self.embed_dim:
            raise ValueError(
                f"class embeddings have shape {tuple(embeddings_KD.shape)}, expected "
                f"(K, {self.embed_dim})"
            )
        if base_mask_K.shape != embeddings_KD.shape[:1]:
            raise ValueError(
                f"base mask has {base_mask_K.numel()} entries for {len(embeddings_KD)} classes"
            )
        if background_D is None and self.background_mode == "text":
            raise ValueError(
                "these text embeddings have no background; rebuild them, or set "
                "MODEL.OPEN_VOCAB.BACKGROUND to zero or learned"
            )
        device = self.embeddings_KD.device
        self.embeddings_KD = F.normalize(embeddings_KD.detach().float(), dim=1).to(device)
        self.base_mask_K = base_mask_K.detach().bool().to(device)
        if background_D is not None:
            self.background_D = F.normalize(background_D.detach().float(), dim=0).to(device)

    def get_embeddings(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``set_embeddings`` takes to come back to the present classes.

        Returns:
            Class embeddings (K, D), base mask (K,) and background (D,).
        """
        return self.embeddings_KD, self.base_mask_K, self.background_D

    def background_embedding(self) -> Tensor:
        """Return the background's row.

        Returns:
            (D,) of unit norm, or zeros in the mode "zero".
        """
        if self.background_mode == "zero":
            return torch.zeros_like(self.background_D)
        if self.background_mode == "learned":
            return F.normalize(self.learned_background_D, dim=0)
        return self.background_D

    def cosine(self, region_RD: Tensor) -> Tensor:
        """Cosines without the temperature.

        Args:
            region_RD: (R, D), any norm; R may be 0.

        Returns:
            (R, K + 1) float32 in [-1, 1], background last.

        Raises:
            ValueError: If the width is not that of the classes.
        """
        if region_RD.shape[-1] != self.embed_dim:
            raise ValueError(
                f"regions are {region_RD.shape[-1]}-d but the text embeddings {self.embed_dim}-d"
            )
        rows = torch.cat([self.embeddings_KD, self.background_embedding()[None]])
        return F.normalize(region_RD.float(), dim=-1) @ rows.T

    def forward(self, region_RD: Tensor) -> Tensor:
        """Score regions.

        Args:
            region_RD: (R, D), any norm; R may be 0.

        Returns:
            (R, K + 1) float32 logits, background last.

        Reference: F-ViT's classifier, CLIPSelf, arXiv 2310.01403, section 4.1.
        """
        return self.temperature * self.cosine(region_RD)

    def extra_repr(self) -> str:
        """Describe the classifier in the printed model."""
        scale = float(self.temperature)
        shown = f"{scale:.1f}" if math.isfinite(scale) else "not finite"
        return f"D={self.embed_dim}, background={self.background_mode}, temperature={shown}"
