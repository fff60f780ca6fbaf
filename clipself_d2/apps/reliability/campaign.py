"""The campaign of faults: kills, bad inputs and attacks, in four figures.

``bash tools/fault_campaign.sh`` runs all; docs/reliability.md quotes the figures.
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipself_d2.apps.paths import user_path
from clipself_d2.apps.reliability.attacks import RAN, run_attacks
from clipself_d2.apps.reliability.bad_inputs import (
    SENTENCE,
    SILENT,
    TAKEN,
    TRACEBACK,
    count_verdicts,
    run_bad_inputs,
)
from clipself_d2.apps.reliability.kills import run_kills
from clipself_d2.command_line.flags import count, positive
from clipself_d2.engine.cli import tool_parser
from clipself_d2.parts.json_file import write_json

logger = logging.getLogger(__name__)

PARTS = ("inputs", "attacks", "kills")
METHODS = ("distillation", "detector", "regionclip", "cris")
Figures = dict[str, Any]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the flags.

    Args:
        arguments: Words of the command line; those of this process when None.

    Returns:
        The flags.
    """
    parser = tool_parser(__doc__, "bash tools/fault_campaign.sh --output output/faults")
    add = parser.add_argument
    add("--output", type=user_path, default=Path("output/faults"), help="folder of all files")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run")
    add("--moments", type=positive, default=20, help="kills of each method")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="that are killed")
    add("--seed", type=count, default=0, help="of the moments")
    return parser.parse_args(arguments)


def run_campaign(args: argparse.Namespace) -> Figures:
    """Run the parts and write ``campaign.json``.

    Args:
        args: Of ``parse_arguments``.

    Returns:
        Figures by part.
    """
    output = args.output.resolve()
    figures: Figures = {}
    for part in args.parts:
        figures[part] = _RUNNERS[part](output / part, args)
        logger.info("%s: %s", part, figures[part])
        write_json(output / "campaign.json", figures, indent=1)
    return figures


def describe(figures: Figures) -> str:
    """Say the figures in lines.

    Args:
        figures: Of ``run_campaign``.

    Returns:
        A line for each.
    """
    lines = []
    inputs, attacks, kills = (figures.get(part) for part in PARTS)
    if inputs:
        clear = inputs[SENTENCE] + inputs[TAKEN]
        lines.append(
            f"bad inputs: {clear} of {inputs['all']} answered rightly ({inputs[SENTENCE]} by one "
            f"sentence, {inputs[TAKEN]} rightly taken)"
        )
        lines.append(
            f"bad inputs answered wrongly: {inputs[TRACEBACK]} by a traceback, {inputs[SILENT]} "
            "taken in silence"
        )
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
    """Tell whether all faults ended as they should.

    Args:
        figures: Of ``run_campaign``.

    Returns:
        Whether no bad input was answered wrongly, no attack ran code and all kills were survived.
    """
    inputs, attacks, kills = (figures.get(part) or {} for part in PARTS)
    ran_code = any(RAN in verdict for verdict in attacks.get("verdicts", ()))
    survived = not any(row["failures"] for row in kills.values())
    return not (inputs.get(TRACEBACK) or inputs.get(SILENT)) and not ran_code and survived


def _run_inputs(folder: Path, _: argparse.Namespace) -> Figures:
    verdicts = run_bad_inputs(folder)
    rows = [vars(each) for each in verdicts if each.verdict in (TRACEBACK, SILENT)]
    return {**count_verdicts(verdicts), "wrong": rows}


def _run_attacks(folder: Path, _: argparse.Namespace) -> Figures:
    rows = [(str(name), str(verdict)) for name, verdict in run_attacks(folder)]
    return {"all": len(rows), "verdicts": dict(Counter(each for _, each in rows)), "rows": rows}


def _run_kills(folder: Path, args: argparse.Namespace) -> Figures:
    return dict(run_kills(folder, args.moments, tuple(args.methods), args.seed))


_RUNNERS: dict[str, Callable[[Path, argparse.Namespace], Figures]] = {
    "inputs": _run_inputs,
    "attacks": _run_attacks,
    "kills": _run_kills,
}


def main() -> int:
    """Run the campaign and print its figures.

    Returns:
        Exit code: 1 where a bad input was answered wrongly, code ran, or a kill was not survived.
    """
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    figures = run_campaign(args)
    sys.stdout.write(f"{describe(figures)}\n")
    return int(not is_sound(figures))


if __name__ == "__main__":
    sys.exit(main())
