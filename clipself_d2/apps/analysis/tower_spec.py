"""Towers named on a command line, for tools that compare several."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clipself_d2.apps.predict.prompts import warn_unseen_words
from clipself_d2.clip import TextEncoder, VisionTower, load_clip, load_tower
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

SPEC_FORM = "[LABEL=]NAME:TAG_OR_FILE[:TOWER_WEIGHTS]"
_LABEL = re.compile(r"([^:=]+)=")
# A colon parts a specification, but for that of a model id on the Hugging Face hub.
_SEPARATOR = re.compile(r"(?<!hf-hub):")


@dataclass(frozen=True)
class TowerSpec:
    """One tower of an analysis.

    Attributes:
        label: What tables and plots call it.
        name: Model name as open_clip knows it.
        weights: Pretrained tag or file of the whole CLIP; gives the text embeddings.
        tower_weights: File with the image tower, such as a distilled student; "" takes that of
            ``weights``.
    """

    label: str
    name: str
    weights: str
    tower_weights: str = ""

    @classmethod
    def parse(cls, text: str) -> "TowerSpec":
        """Read ``[LABEL=]NAME:TAG_OR_FILE[:TOWER_WEIGHTS]``.

        Without a label, it is the name with the tag or with the last two parts of the file's path.
        """
        found = _LABEL.match(text)
        label, rest = (found[1].strip(), text[found.end() :]) if found else ("", text)
        parts = [part.strip() for part in _SEPARATOR.split(rest)]
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise ValueError(
                f"tower {text!r} cannot be read; write {SPEC_FORM}, for example "
                "ViT-B-16-quickgelu:openai or student=EVA02-B-16:merged2b_s8b_b131k:student.pth"
            )
        source = Path(parts[-1])
        short = "/".join(source.with_suffix("").parts[-2:]) if source.suffix else parts[-1]
        return cls(label or f"{parts[0]} {short}", *parts)

    def load(
        self, *, precision: str = "fp32", device: torch.device | None = None, form: str = ""
    ) -> VisionTower:
        """Build the image tower, frozen, in evaluation mode.

        Args:
            precision: Number type: fp32, bf16 or auto.
            device: Where it is put; None is the CPU.
            form: Name of the dense form; "" takes the one that the file tells, else clipself.
        """
        tower = load_tower(self.name, self.tower_weights or self.weights, precision=precision)
        trained = (tower.trained_form or {}).get("MODEL.CLIP.DENSE_FORM", "clipself")
        tower.set_dense_form(form or str(trained))
        tower.freeze()
        return tower.to(device or torch.device("cpu"))

    def embed(
        self, names: Sequence[str], *, templates: str = "", device: torch.device | None = None
    ) -> TextEmbeddings:
        """Embed K class names, on the CPU; templates "" are the text tower's default ones."""
        vocabulary = Vocabulary.from_names(list(names))
        text = load_clip(self.name, self.weights).text.to(device or torch.device("cpu"))
        warn_unseen_words(text, self.name, names)
        return TextEmbeddings.build(
            text,
            vocabulary,
            clip=self.name,
            templates=templates or default_templates(text),
            weights=self.weights,
            background=None,
        )


def default_templates(text: TextEncoder) -> str:
    """Return "emoji" for a CLIP that has read made-up captions alone, otherwise "vild"."""
    return "emoji" if text.closed_words else "vild"


def choose_device(name: str) -> torch.device:
    """Turn --device into a device that is there; "" is this machine's accelerator, or its CPU."""
    if not name:
        there = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
        return there or torch.device("cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from error
