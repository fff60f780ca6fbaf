"""Train the embedded CLIP from nothing and write its weights and its merges file."""

import logging
import sys

from clipself_d2_cli.flags import tool_parser, user_path

MODEL = "ViT-Ti-8-emoji"
EXAMPLE = "python tools/train_emoji_clip.py --output output/emoji.safetensors"
# The options of ``EmojiClipOptions``.
DEFAULTS = {
    "steps": 6000,
    "batch_size": 128,
    "learning_rate": 1.5e-3,
    "weight_decay": 0.1,
    "warmup": 200,
    "seed": 0,
    "precision": "auto",
    "log_period": 100,
    "eval_period": 1000,
}


def main() -> int:
    """Parse the flags and train."""
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument("--output", type=user_path, required=True, help="safetensors file to write")
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    output, debug = args.pop("output"), args.pop("debug")

    import torch

    from clipself_d2.apps.emoji.train_clip import (
        EmojiClipOptions,
        EmojiClipTask,
        save_emoji_clip,
        train_emoji_clip,
    )
    from clipself_d2.clip import VisionTower, load_clip
    from clipself_d2.engine.cli import run_tool

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)

    def action() -> None:
        options = EmojiClipOptions(**args)
        logging.info("%s", options)
        torch.manual_seed(options.seed)
        model = load_clip(MODEL, precision=options.precision)
        assert isinstance(model.tower, VisionTower), f"{MODEL} is a ViT"
        task = EmojiClipTask(tower=model.tower, text=model.text)
        train_emoji_clip(task, options)
        save_emoji_clip(model, task, output)

    return run_tool(action, debug=debug)


if __name__ == "__main__":
    sys.exit(main())
