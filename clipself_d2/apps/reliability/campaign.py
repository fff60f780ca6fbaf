"""The campaign of faults: kills, bad inputs and attacks, in four figures.

``bash tools/fault_campaign.sh`` runs all; docs/reliability.md quotes the figures.
"""

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from clipself_d2.apps.reliability.attacks import RAN, run_attacks
from clipself_d2.apps.reliability.bad_inputs import (
    SENTENCE,
    SILENT,
    TAKEN,
    TRACEBACK,
    count_verdicts,
    run_bad_inputs,
)
from clipself_d2.apps.reliability.kills import METHODS, run_kills
from clipself_d2.command_line.flags import count, positive
from clipself_d2.parts.json_file import write_json
from clipself_d2_cli.flags import tool_parser, user_path

logger = logging.getLogger(__name__)

PARTS = ("inputs", "attacks", "kills")
Figures = dict[str, Any]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the flags; those of this process when None."""
    parser = tool_parser(__doc__, "bash tools/fault_campaign.sh --output output/faults")
    add = parser.add_argument
    add("--output", type=user_path, default=Path("output/faults"), help="folder of all files")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run")
    add("--moments", type=positive, default=20, help="kills of each method")
    add("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], help="that are killed")
    add("--seed", type=count, default=0, help="of the moments")
    return parser.parse_args(arguments)


def run_campaign(args: argparse.Namespace) -> Figures:
    """Run the parts and write their figures to ``campaign.json``."""
    output = args.output.resolve()
    figures: Figures = {}
    for part in args.parts:
        figures[part] = _run(part, output / part, args)
        logger.info("%s: %s", part, figures[part])
        write_json(output / "campaign.json", figures, indent=1)
    return figures


def _run(part: str, folder: Path, args: argparse.Namespace) -> Figures:
    if part == "kills":
        return dict(run_kills(folder, args.moments, args.methods, args.seed))
    if part == "attacks":
        rows = run_attacks(folder)
        return {"all": len(rows), "verdicts": Counter(each for _, each in rows), "rows": rows}
    verdicts = run_bad_inputs(folder)
    wrong = [vars(each) for each in verdicts if each.verdict in (TRACEBACK, SILENT)]
    return {**count_verdicts(verdicts), "wrong": wrong}


def describe(figures: Figures) -> str:
    """Say the figures of ``run_campaign`` in lines."""
    lines: list[str] = []
    inputs, attacks, kills = (figures.get(part) for part in PARTS)
    if inputs:
        clear = inputs[SENTENCE] + inputs[TAKEN]
        lines = [
            f"bad inputs: {clear} of {inputs['all']} answered rightly ({inputs[SENTENCE]} by one "
            f"sentence, {inputs[TAKEN]} rightly taken)",
            f"bad inputs answered wrongly: {inputs[TRACEBACK]} by a traceback, {inputs[SILENT]} "
            "taken in silence",
        ]
    if attacks:
        told = ", ".join(f"{number} {verdict}" for verdict, number in attacks["verdicts"].items())
        lines.append(f"attacks: {attacks['all']}: {told}")
    if kills:
        lines += [
            f"kills of {method}: {row['survived']} of {row['kills']} resumed to equal bits, "
            f"{row['checkpoints']} of them behind a checkpoint"
            for method, row in kills.items()
        ]
    return "\n".join(lines)


def is_sound(figures: Figures) -> bool:
    """Whether no bad input was answered wrongly, no attack ran code and all kills were survived."""
    inputs, attacks, kills = (figures.get(part) or {} for part in PARTS)
    ran_code = any(RAN in verdict for verdict in attacks.get("verdicts", ()))
    survived = not any(row["failures"] for row in kills.values())
    return not (inputs.get(TRACEBACK) or inputs.get(SILENT)) and not ran_code and survived


def main() -> int:
    """Run the campaign and print its figures; the exit code is 1 unless all is sound."""
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    figures = run_campaign(args)
    sys.stdout.write(f"{describe(figures)}\n")
    return int(not is_sound(figures))


if __name__ == "__main__":
    sys.exit(main())
