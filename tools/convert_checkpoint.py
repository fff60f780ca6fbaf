"""Write the CLIP weights of a file in another published layout."""

import sys

from clipself_d2_cli.flags import tool_parser, user_path

EXAMPLE = (
    "python tools/convert_checkpoint.py "
    "clipself_d2/clip/pretrained/ViT-Ti-8-emoji.safetensors output/emoji_clip.pt --to clipself"
)
SHOWN = 5
LAYOUTS = ("open_clip", "clipself", "d2", "safetensors")


def main() -> int:
    """Parse the flags, convert, and say what was done."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add(
        "input",
        type=user_path,
        help="weights of open_clip, OpenAI (TorchScript), EVA-CLIP or CLIPSelf, an F-ViT "
        "detector, a detector or distilled student of this project, or safetensors",
    )
    add("output", type=user_path, help="file to write")
    add("--to", required=True, choices=LAYOUTS, help="layout to write")
    add("--model", default="", help="open_clip's model name; the input must fit it exactly")
    add("--force", action="store_true", help="overwrite the output")
    args = parser.parse_args()

    from clipself_d2.clip.weights.convert import convert_checkpoint
    from clipself_d2.engine.cli import run_tool

    def action() -> None:
        report = convert_checkpoint(
            args.input, args.output, to=args.to, model=args.model, force=args.force
        )
        print(f"read {report.source}: {report.num_read} tensors, layout {report.source_layout}")
        print(f"wrote {report.output}: {report.num_written} tensors, layout {report.layout}")
        for title, names in (("left out", report.left_out), ("computed", report.added)):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                print(f"{title} {len(names)}: {', '.join(names[:SHOWN])}{more}")

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
