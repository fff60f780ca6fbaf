"""The page of image towers that ``tools/list_towers.py`` writes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from clipself_d2.clip.catalog import known_models, render


def write_towers(names: Sequence[str], output: Path | None) -> None:
    """Describe models of open_clip.

    Args:
        names: Model names; empty for all.
        output: Markdown file to write, whose folder exists; None writes to the terminal.

    Raises:
        ValueError: If a model is unknown.
        FileNotFoundError: If the folder of ``output`` is missing.
    """
    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: the folder {output.parent} does not exist")
    page = render(names or known_models())
    if output is None:
        sys.stdout.write(page)
    else:
        output.write_text(page)
