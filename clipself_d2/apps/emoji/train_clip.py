"""Contrastive training of the embedded CLIP on captioned pictures of the emoji world."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from clipself_d2.apps.emoji.captioned import CAPTION_STARTS, CaptionedBatch, CaptionedPictures
from clipself_d2.clip import ClipModel, TextEncoder, VisionTower
from clipself_d2.clip.precision import compute_context
from clipself_d2.data.datasets.emoji_world import load_world
from clipself_d2.vocabulary.templates import fill_templates, get_templates

logger = logging.getLogger(__name__)

VALIDATION_SEED = 987_654


@dataclass(frozen=True)
class EmojiClipOptions:
    """Recipe of the embedded CLIP.

    Attributes:
        steps: Number of optimiser steps.
        batch_size: Pictures a step.
        learning_rate: Peak of AdamW's learning rate.
        weight_decay: Of every parameter with two or more axes.
        warmup: Steps of linear warm-up before the cosine.
        seed: Seed of weights and pictures.
        precision: fp32, bf16 or auto.
        log_period: Steps between two lines of the log.
        eval_period: Steps between two validations.
    """

    steps: int = 6000
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    warmup: int = 200
    seed: int = 0
    precision: str = "auto"
    log_period: int = 100
    eval_period: int = 1000


def corpus_words() -> list[str]:
    """List every word the embedded CLIP reads in training, lower-case and sorted."""
    world = load_world()
    texts = [*world.thing_names, *world.stuff, *CAPTION_STARTS, "an and on"]
    texts += [re.sub(r"\{\w*\}", " ", template) for template in get_templates("emoji")]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})


def class_prompts(names: Sequence[str]) -> list[list[str]]:
    """Prompt every name: a list for each template, in the order of the names."""
    templates = get_templates("emoji")
    by_name = [fill_templates(name, templates) for name in names]
    return [list(prompts) for prompts in zip(*by_name, strict=True)]


def contrastive_loss(logits_NM: Tensor, positive_NM: Tensor) -> Tensor:
    """Symmetric cross entropy with several positives.

    Args:
        logits_NM: Scaled cosines of pictures against texts.
        positive_NM: True where a text fits a picture.

    Returns:
        Mean of the picture-to-text loss over pictures with a positive and of the text-to-picture
        loss over texts with a positive; targets share their mass evenly.

    Reference: UniCL, arXiv 2204.03610, Eq. 3; CLIP's loss where each row has one positive.
    """
    losses = []
    for logits, positive in ((logits_NM, positive_NM), (logits_NM.T, positive_NM.T)):
        rows = positive.any(1)
        target = positive[rows].float()
        target = target / target.sum(1, keepdim=True)
        losses.append(-(target * F.log_softmax(logits[rows].float(), dim=1)).sum(1).mean())
    return (losses[0] + losses[1]) / 2


class EmojiClipTask(nn.Module):
    """The embedded CLIP with its loss."""

    tower: VisionTower
    text: TextEncoder
    prompt_tokens: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, *, tower: VisionTower, text: TextEncoder) -> None:
        super().__init__()
        self.tower, self.text = tower, text
        # CLIP's temperature at the start.
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        world = load_world()
        prompts = class_prompts((*world.thing_names, *world.stuff))
        tokens = torch.stack([text.tokenize(prompt) for prompt in prompts])
        self.register_buffer("prompt_tokens", tokens, persistent=False)
        mean, std = torch.tensor(tower.pixel_mean), torch.tensor(tower.pixel_std)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1), persistent=False)

    def encode_images(self, images: Tensor) -> Tensor:
        """Embed pictures: (N, 3, s, s) uint8 RGB to (N, D) unit-norm float32."""
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        return F.normalize(self.tower.forward_image(pixels).float(), dim=1)

    def forward(self, batch: CaptionedBatch, template: int) -> Tensor:
        """Loss of pictures against all class prompts of one template and against their captions."""
        image = self.encode_images(batch.images)
        tokens = torch.cat([self.prompt_tokens[template], self.text.tokenize(batch.captions)])
        text = F.normalize(self.text(tokens).float(), dim=1)
        num_classes = self.prompt_tokens.shape[1]
        logits = self.log_scale.exp() * image @ text.T
        # Pictures may share a caption, each of which is then right for both.
        same = torch.tensor([[a == b for b in batch.captions] for a in batch.captions])
        classes = contrastive_loss(logits[:, :num_classes], batch.labels)
        return classes + 0.5 * contrastive_loss(logits[:, num_classes:], same)

    @torch.no_grad()
    def zero_shot(self, seed: int = VALIDATION_SEED, num_batches: int = 8) -> float:
        """Top-1 accuracy in [0, 1] over all things, on fresh pictures that show exactly one."""
        num_things = len(load_world().things)
        embeddings = [
            F.normalize(self.text(t[:num_things]).float(), dim=1) for t in self.prompt_tokens
        ]
        classes = F.normalize(torch.stack(embeddings).mean(0), dim=1)
        pictures = CaptionedPictures(
            batch_size=256, picture_size=self.tower.image_size, seed=seed, num_batches=num_batches
        )
        right = total = 0
        for batch in pictures:
            single = (batch.labels.sum(1) == 1) & batch.labels[:, :num_things].any(1)
            predicted = (self.encode_images(batch.images[single]) @ classes.T).argmax(1)
            right += int((predicted == batch.labels[single].int().argmax(1)).sum())
            total += int(single.sum())
        return right / total


def train_emoji_clip(task: EmojiClipTask, options: EmojiClipOptions) -> float:
    """Train the embedded CLIP in place; returns its zero-shot accuracy."""
    decayed = [p for p in task.parameters() if p.ndim >= 2]
    plain = [p for p in task.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), eps=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, options))
    pictures = CaptionedPictures(
        batch_size=options.batch_size,
        picture_size=task.tower.image_size,
        seed=options.seed,
        num_batches=options.steps,
    )
    loader = DataLoader(pictures, batch_size=None, num_workers=1, prefetch_factor=4)
    accuracy, recent = 0.0, []
    for step, batch in enumerate(tqdm(loader, total=options.steps, mininterval=10), start=1):
        with compute_context(torch.device("cpu"), options.precision):
            loss = task(batch, step % len(task.prompt_tokens))
            loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            # CLIP's limit; a larger scale makes training unstable.
            task.log_scale.clamp_(max=math.log(100.0))
        recent.append(loss.item())
        if step % options.log_period == 0 or step == options.steps:
            mean, scale = sum(recent) / len(recent), task.log_scale.exp().item()
            logger.info("step %d/%d loss %.4f scale %.1f", step, options.steps, mean, scale)
            recent.clear()
        if step % options.eval_period == 0 or step == options.steps:
            accuracy = task.zero_shot()
            logger.info("step %d zero-shot top-1 %.2f %%", step, 100 * accuracy)
    return accuracy


def _factor(step: int, options: EmojiClipOptions) -> float:
    if step < options.warmup:
        return (step + 1) / options.warmup
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def save_emoji_clip(model: ClipModel, task: EmojiClipTask, path: Path) -> None:
    """Write the embedded CLIP with the learned scale, in half precision, by open_clip's names."""
    state = {**model.open_clip_state_dict(), "logit_scale": task.log_scale.detach()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in state.items()}, path)
    logger.info("%d tensors, %.1f MB in %s", len(state), path.stat().st_size / 1e6, path)
