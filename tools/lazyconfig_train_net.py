"""Train or evaluate a LazyConfig recipe, with Detectron2's flags; overrides are key=value."""

import sys

from clipself_d2_cli.flags import train_parser

EXAMPLE = (
    "python tools/lazyconfig_train_net.py --config-file configs/plug_in/vitdet_mask_rcnn.py "
    "train.max_iter=20"
)


def main() -> int:
    """Run the command."""
    args = train_parser(EXAMPLE, __doc__).parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.engine.cli import launch_tool
    from clipself_d2.engine.lazy import run_lazy

    return launch_tool(run_lazy, (args,), args)


if __name__ == "__main__":
    sys.exit(main())
