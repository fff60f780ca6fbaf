"""Name the masks of any other model by a CLIP tower and typed words, and score them."""

import sys

from clipself_d2_cli.flags import tool_parser, user_path

EXAMPLE = (
    "python tools/classify_masks.py --masks datasets/emoji/annotations/panoptic_val.json "
    "--maps datasets/emoji/panoptic_val --images datasets/emoji/val "
    "--tower ViT-Ti-8-emoji:emoji --vocabulary emoji_ov_panoptic_val "
    "--dataset emoji_ov_panoptic_val --output output/masks"
)
POOLINGS = ("hard", "soft", "tokens")


def main() -> int:
    """Parse the flags and name the masks."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add(
        "--masks",
        required=True,
        type=user_path,
        help="COCO panoptic json, json list of COCO results with run-length masks, or a folder of "
        "PNGs named as the pictures are",
    )
    add("--maps", type=user_path, help="PNGs of a panoptic json; default: the folder of its name")
    add("--images", required=True, type=user_path, help="folder of the pictures")
    add(
        "--tower",
        required=True,
        metavar="NAME:WEIGHTS",
        help="[LABEL=]NAME:TAG_OR_FILE[:TOWER_WEIGHTS]",
    )
    add("--vocabulary", default="custom", help="custom, a registered data set, or a file of names")
    add("--custom-vocabulary", default="", help='classes between commas: "dog,car"')
    add("--dataset", default="", help="registered data set to score the named masks against")
    add("--size", type=int, default=0, help="longest side for the tower, px; 0: the picture's")
    add("--pooling", choices=POOLINGS, default="hard", help="what the tower sees of a mask")
    add("--form", default="", help="dense form by its name; default: the weights' own")
    add("--templates", default="", help="prompt set; default: the CLIP's")
    add("--device", default="", help="default: the GPU, if there is one")
    add("--output", required=True, type=user_path, help="folder of the results")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.analysis.tower_spec import TowerSpec, choose_device
    from clipself_d2.apps.predict.classify_masks import MaskNaming, classify_masks
    from clipself_d2.apps.predict.demo import choose_vocabulary
    from clipself_d2.engine.cli import run_tool, start_logging

    def action() -> None:
        start_logging()
        scores = classify_masks(
            TowerSpec.parse(args.tower),
            args.masks,
            args.images,
            choose_vocabulary(args.vocabulary, args.custom_vocabulary),
            args.output,
            maps=args.maps,
            naming=MaskNaming(args.size, args.pooling, templates=args.templates, form=args.form),
            dataset=args.dataset,
            device=choose_device(args.device),
        )
        for task, metrics in scores.items():
            shown = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
            print(f"{task}: {shown}")

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
