"""A small vision model for the emoji world, trained on its scenes without labels.

Legend: N pictures, C channels.
"""

import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from torch import Tensor, nn
from torchvision.transforms import v2

from clipself_d2.clip.vision_model import VisionModel
from clipself_d2.data.pictures import read_picture, to_tensor

logger = logging.getLogger(__name__)

SCENES, NAME = "emoji_train_images", "tiny"
# Side of the two views, px, and of the window of a scene that both are cut from.
VIEW, WINDOW = 64, 112
TEMPERATURE = 0.2
LOG_PERIOD = 50


def view_loss(first_NC: Tensor, second_NC: Tensor) -> Tensor:
    """Find each view's partner among all other views.

    Args:
        first_NC: Projected features of one view of every picture.
        second_NC: Those of the other view.

    Returns:
        Mean cross entropy over the 2 N views.

    Reference: SimCLR, arXiv 2002.05709, Eq. 1.
    """
    every = F.normalize(torch.cat([first_NC, second_NC]), dim=1)
    logits = every @ every.T / TEMPERATURE
    # A view is no partner of itself.
    logits.fill_diagonal_(-math.inf)
    # View n of the first half belongs to n + N, and the other way round.
    partner = torch.arange(len(every)).roll(len(first_NC))
    return F.cross_entropy(logits, partner)


def train_vision_model(output: Path, *, steps: int, batch_size: int, seed: int) -> list[float]:
    """Train the vision model ``tiny`` and write a file for MODEL.VFM.WEIGHTS.

    The mean of a view's patches is held against those of all views of the batch; no label is read.

    Args:
        output: File to write.
        steps: Steps of AdamW.
        batch_size: Scenes a step; each gives two views.
        seed: Seed of the scenes and views.

    Returns:
        The loss of every step.
    """
    torch.manual_seed(seed)
    drawn = np.random.default_rng(seed)
    vision = VisionModel(NAME)
    model = vision.model.requires_grad_(True)
    head = nn.Sequential(nn.Linear(model.num_features, 128), nn.GELU(), nn.Linear(128, 64))
    learned = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    window = v2.RandomCrop(WINDOW)
    views = v2.Compose(
        [
            v2.RandomResizedCrop(VIEW, scale=(0.25, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        ]
    )
    records = DatasetCatalog.get(SCENES)
    losses = []
    for step in range(1, steps + 1):
        rows = drawn.choice(len(records), batch_size, replace=len(records) < batch_size)
        windows = [window(to_tensor(read_picture(records[row]["file_name"]))) for row in rows]
        # First one view of all windows, then the other, as ``view_loss`` takes them.
        pixels = torch.stack([views(each) for _ in range(2) for each in windows]).float()
        tokens = model.forward_features((pixels - vision.mean) / vision.std)
        projected = head(tokens[:, model.num_prefix_tokens :].mean(dim=1))
        loss = view_loss(*projected.chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % LOG_PERIOD == 0 or step == steps:
            logger.info("step %d/%d loss %.3f", step, steps, np.mean(losses[-LOG_PERIOD:]))
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), output)
    return losses
