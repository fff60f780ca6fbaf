import logging
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from clipself_d2.engine.cli import _ShortUserErrors, load_config, run_tool, set_up, start_logging
from clipself_d2_cli.flags import tool_parser, train_parser


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


# Of the latter's kind is a full disk.
@pytest.mark.parametrize("error", [ValueError("MODEL.X is 3, use 4"), OSError("a.pth: no space")])
def test_a_users_error_becomes_one_sentence_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert run_tool(failing(error)) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize(
    ("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "SIGINT", 130)]
)
def test_a_signal_has_an_exit_code_of_its_own(capsys, number, name, code) -> None:
    # The processes of pytest-xdist ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_tool(partial(signal.raise_signal, number)) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.startswith(f"stopped by {name} ")


def test_the_help_tells_how_to_begin_anew() -> None:
    text = " ".join(train_parser("x").format_help().split())
    assert "go on from the newest whole checkpoint" in text
    assert "set checkpoints in the folder aside" in text


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_logged(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    args = train_parser("x").parse_args(["OUTPUT_DIR", str(tmp_path / "file" / "out")])
    with pytest.raises(OSError, match="OUTPUT_DIR .* cannot be written to: Not a directory"):
        set_up(args)


@pytest.mark.parametrize(("error", "debug"), [(OSError("gone"), True), (AssertionError(), False)])
def test_debug_shows_the_error_itself_and_one_of_ours_is_not_hidden(error, debug) -> None:
    with pytest.raises(type(error)):
        run_tool(failing(error), debug=debug)
    assert run_tool(lambda: None, debug=debug) == 0


def test_the_flags_are_those_of_detectron2_and_debug() -> None:
    args = train_parser("x").parse_args(
        ["--config-file", "a.yaml", "--eval-only", "--num-gpus", "2", "SEED", "1"]
    )
    assert args.config_file == "a.yaml"
    assert args.eval_only
    assert args.num_gpus == 2
    assert args.opts == ["SEED", "1"]
    assert not args.debug


def test_detectron2_has_no_other_flags_and_no_other_defaults() -> None:
    """They are written down again, since its parser comes with torch."""
    theirs, ours = default_argument_parser().parse_args([]), train_parser("x").parse_args([])
    assert vars(ours) == {**vars(theirs), "debug": False}


def test_dumps_are_in_the_log_file_and_not_in_the_terminal(python: str, tmp_path: Path) -> None:
    code = (
        "import clipself_d2; from clipself_d2.engine.cli import set_up\n"
        "from clipself_d2_cli.flags import train_parser\n"
        f"set_up(train_parser('x').parse_args(['OUTPUT_DIR', {str(tmp_path)!r}, 'SEED', '1']))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    log = (tmp_path / "log.txt").read_text()
    for dump in ("Environment info", "Running with full config"):
        assert dump in log
        assert dump not in done.stdout
    assert "Full config saved to" in done.stdout
    assert len(done.stdout.splitlines()) < 10
    assert "Warning" not in done.stderr


def test_a_command_shows_its_example_on_a_line_of_its_own_and_takes_debug() -> None:
    parser = tool_parser("What it does.", "python tools/a.py --output b")
    assert "\n\nExample:\n\n    python tools/a.py --output b\n" in parser.format_help()
    assert "What it does." in parser.format_help()
    assert parser.parse_args(["--debug"]).debug
    assert not parser.parse_args([]).debug


def test_logging_shows_our_messages() -> None:
    logger = logging.getLogger("clipself_d2")
    before = list(logger.handlers)
    try:
        start_logging()
        assert logger.isEnabledFor(logging.INFO)
    finally:
        logger.handlers[:] = before


@pytest.mark.parametrize(
    ("error", "is_short"), [(ValueError("x"), True), (AssertionError(), False)]
)
def test_the_loops_traceback_of_a_users_error_is_left_out(error: Exception, is_short: bool) -> None:
    record = logging.LogRecord("d2", logging.ERROR, "f", 1, "m", (), (type(error), error, None))
    assert _ShortUserErrors().filter(record)
    assert (record.exc_info is None) == is_short


def test_a_lazyconfig_is_not_read_as_yaml() -> None:
    file = str(Path(__file__).parents[2] / "configs" / "lazy" / "fvit_coco_vitb16.py")
    with pytest.raises(ValueError, match=r"is a LazyConfig, expected yaml.*lazyconfig_train_net"):
        load_config(file, [])
