"""Run the whole path on the embedded data set; called by tools/quickstart.sh."""

import logging
import sys

import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.apps.emoji.quickstart import parse_arguments, run_quickstart
from clipself_d2.engine.cli import run_tool

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = parse_arguments()
    sys.exit(run_tool(lambda: run_quickstart(options)))
