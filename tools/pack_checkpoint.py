"""Write a checkpoint to give away: weights, dense form and class names, no optimiser, no run."""

import sys

from clipself_d2_cli.flags import tool_parser, user_path

EXAMPLE = (
    "python tools/pack_checkpoint.py output/quickstart/fvit_clipself/model_final.pth "
    "output/fvit_clipself.pth --recipe emoji/fvit_clipself.yaml "
    "--tower clipself_d2://emoji/clipself_proposals.pth"
)


def main() -> int:
    """Parse the flags, write the file and print its size and sum."""
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument("input", type=user_path, help="model_final.pth of a run")
    parser.add_argument("output", type=user_path, help="file to write")
    parser.add_argument("--recipe", required=True, help="yaml recipe of the run, below configs/")
    parser.add_argument("--tower", default="", help="clipself_d2:// address of its image tower")
    args = parser.parse_args()

    import hashlib

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.engine.cli import run_tool
    from clipself_d2.model_zoo.checkpoints import pack_checkpoint

    def action() -> None:
        options = {"config_path": args.recipe, "tower": args.tower}
        names = pack_checkpoint(args.input, args.output, **options)
        content = args.output.read_bytes()
        print(f"{args.output}: {len(content) / 1e6:.1f} MB, {len(names)} classes")
        print(f"sha256 {hashlib.sha256(content).hexdigest()}")

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
