"""Write the nouns of a caption corpus, with counts, as the concept pool of RegionCLIP."""

import sys
import time

from clipself_d2_cli.flags import count, tool_parser, user_path

EXAMPLE = (
    "python tools/build_concept_pool.py --captions emoji --min-count 20 "
    "--output output/emoji/concepts.txt"
)
SHOWN = 10
PARSERS = ("rules", "spacy")


def main() -> int:
    """Parse the flags and write the file."""
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--captions",
        required=True,
        help="captions_train2017.json of COCO, a .tsv or .csv list, a text file with one sentence "
        "a line, emoji, or a data set of DATASETS.TRAIN such as "
        "captions_webdataset:cc3m/{00000..00331}.tar",
    )
    parser.add_argument("--output", required=True, type=user_path, help="file of noun,count lines")
    parser.add_argument("--parser", choices=PARSERS, default="rules", help="how nouns are found")
    parser.add_argument("--min-count", type=count, default=100, help="least occurrences kept")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.files.concept_pool import build_concept_pool
    from clipself_d2.engine.cli import run_tool, start_logging

    def action() -> None:
        start_logging()
        begin = time.perf_counter()
        pool = build_concept_pool(
            args.captions, args.output, parser=args.parser, min_count=args.min_count
        )
        shown = ", ".join(pool.names[:SHOWN])
        print(
            f"{len(pool.names)} concepts in {args.output} after {time.perf_counter() - begin:.1f} "
            f"s; the most frequent are {shown}"
        )

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
