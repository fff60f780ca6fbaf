"""Write the label maps of COCO-Stuff, ADE20K, Pascal Context and VOC in one layout."""

import sys

from clipself_d2_cli.flags import add_data_root, tool_parser, user_path

EXAMPLE = (
    "python datasets/prepare_semseg.py coco_stuff --split val --images coco/val2017 "
    "--labels coco/stuffthingmaps/val2017 --root datasets"
)
SETS = (
    "coco_stuff",
    "ade20k_150",
    "ade20k_847",
    "context_59",
    "context_459",
    "voc_20",
    "voc_20b",
    "voc_21",
)


def main() -> int:
    """Parse the flags and write the maps."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("name", choices=SETS, help="the benchmark")
    add("--split", default="val", help="train or val")
    add("--images", required=True, type=user_path, help="folder of the pictures, jpg")
    add("--labels", required=True, type=user_path, help="folder of the published maps")
    add("--names", type=user_path, help="labels.txt of Pascal Context; json list for ADE20K-847")
    add("--list", type=user_path, help="stems of the pictures to take, a line each; default: all")
    add_data_root(parser, "--root", "folder of data sets")
    add("--limit", type=int, default=0, help="first N pictures; default: all")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.prepare.semseg import SourceFolders, prepare_semseg
    from clipself_d2.engine.cli import run_tool, start_logging

    def action() -> None:
        start_logging()
        source = SourceFolders(args.images, args.labels, args.names, args.list)
        print(prepare_semseg(args.name, args.split, source, args.root, args.limit))

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
