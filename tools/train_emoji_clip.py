"""Train the embedded CLIP from nothing and write its weights and its merges file."""

import argparse
import logging
import sys
from dataclasses import fields

import torch

from clipself_d2.apps.emoji.train_clip import (
    EmojiClipOptions,
    EmojiClipTask,
    save_emoji_clip,
    train_emoji_clip,
)
from clipself_d2.apps.paths import user_path
from clipself_d2.clip import VisionTower, load_clip

MODEL = "ViT-Ti-8-emoji"


def main() -> int:
    """Parse the flags and train.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: python tools/train_emoji_clip.py --output output/emoji.safetensors",
    )
    parser.add_argument("--output", type=user_path, required=True, help="safetensors file to write")
    for option in fields(EmojiClipOptions):
        flag = f"--{option.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(option.default), default=option.default)
    args = vars(parser.parse_args())
    output = args.pop("output")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    options = EmojiClipOptions(**args)
    logging.info("%s", options)
    torch.manual_seed(options.seed)
    model = load_clip(MODEL, precision=options.precision)
    assert isinstance(model.tower, VisionTower), f"{MODEL} is a ViT"
    task = EmojiClipTask(tower=model.tower, text=model.text)
    train_emoji_clip(task, options)
    save_emoji_clip(model, task, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
