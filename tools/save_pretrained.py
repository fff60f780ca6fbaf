"""Write a CLIP with a distilled tower as a folder of the Hugging Face hub's layout; upload it."""

import sys

from clipself_d2_cli.flags import tool_parser, user_path

EXAMPLE = (
    "python tools/save_pretrained.py --clip ViT-B-16-quickgelu --weights openai "
    "--student output/distill/clipself_coco_patches_openai_vitb16/model_final.pth "
    "--output output/student --title CLIPSelf-ViT-B-16 --card recipe=clipself data=COCO"
)


def main() -> int:
    """Parse the flags, write the folder, and upload it where that is asked for."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--clip", required=True, help="model name as open_clip knows it, or hf-hub:org/name")
    add("--weights", required=True, help="pretrained tag or file of the whole CLIP")
    add("--student", type=user_path, help="weights of the image tower, model_final.pth")
    add("--output", required=True, type=user_path, help="folder to write")
    add("--title", required=True, help="heading of the model card")
    add("--card", nargs="*", default=[], metavar="NAME=TEXT", help="rows of the model card")
    add("--push", default="", metavar="ORG/NAME", help="upload it there, with your login's token")
    add("--public", action="store_true", help="make a new repository public")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.clip import load_clip, push, save_pretrained
    from clipself_d2.clip.weights.form import read_form
    from clipself_d2.clip.weights.loading import load_tower_weights
    from clipself_d2.engine.cli import run_tool

    def action() -> None:
        clip = load_clip(args.clip, args.weights)
        card: dict[str, object] = {"CLIP": args.clip, "weights": args.weights}
        if args.student:
            load_tower_weights(clip.tower, args.student)
            card |= {
                f"form: {name}": value for name, value in (read_form(args.student) or {}).items()
            }
        for row in args.card:
            name, _, text = row.partition("=")
            card[name] = text
        print(save_pretrained(clip, args.output, title=args.title, card=card))
        if args.push:
            print(push(args.output, args.push, private=not args.public))

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
