"""A stand-in for the Python command, in which other people's libraries are imported already.

Most of a short command's time goes into importing torch and its like. A server imports them once;
for every command it forks a process, which imports Detectron2 and this project afresh and runs what
Python would run. The executable takes Python's arguments (``-c``, ``-m``, ``-u``, ``-W``, a
script), so that commands which start commands or processes stay on it.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

PRELOADED = (
    "torch", "torchvision", "torch.distributed.run", "torch.utils.tensorboard", "timm",
    "open_clip", "fvcore.nn", "iopath", "omegaconf", "hydra", "PIL.Image", "cv2",
    "scipy.ndimage", "scipy.optimize", "matplotlib.pyplot", "pycocotools.mask", "hotcoco",
)  # fmt: skip
_CLIENT = """#!{python} -SEs
import array, json, os, signal, socket, sys
fds = []
for name in os.listdir("/proc/self/fd"):
    try:
        os.fstat(int(name))
        fds.append(int(name))
    except OSError:
        pass
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
job = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
job = json.dumps({{**job, "fds": fds}}).encode()
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
server.sendmsg([len(job).to_bytes(4, "big")], rights)
server.sendall(job)
# The process that does the work is another one; it gets what this one is told.
signal.signal(signal.SIGTERM, lambda *_: server.sendall(b"T"))
sys.exit(int(server.recv(8) or b"1"))
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start a server, which takes seconds to be there, and write the executable that asks it.

    Args:
        folder: An empty folder with a short path; ``python`` in it is the executable.

    Returns:
        The server.
    """
    address, client = folder / "socket", folder / "python"
    client.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o755)
    return subprocess.Popen([sys.executable, "-W", "ignore", __file__, str(address), str(client)])


def wait_for(folder: Path) -> str:
    """Wait until the server of a folder is there; return the executable."""
    end = time.monotonic() + 300
    while not (folder / "socket").exists():
        assert time.monotonic() < end, "the server of warm Pythons did not start"
        time.sleep(0.05)
    return str(folder / "python")


def serve(address: str) -> dict[str, object]:
    """Fork a process for every command; return in it, with the command.

    Args:
        address: Path of the socket.

    Returns:
        What the client has sent, in the process that is to run it.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    os.rename(address + ".new", address)
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            break
        connection.close()
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, rights, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(4 * 200))
    given = array.array("i")
    for _, _, content in rights:
        given.frombytes(content)
    text = b""
    while len(text) < int.from_bytes(size, "big"):
        text += connection.recv(65536)
    worker = os.fork()
    if worker:
        watch(worker, connection)
    job: dict[str, object] = json.loads(text)
    place(given.tolist(), job["fds"])
    return job


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def watch(worker: int, connection: socket.socket) -> None:
    """Send the exit code of a process to the client, and the client's SIGTERM to the process.

    A process whose client is gone is ended.
    """
    while True:
        done, status = os.waitpid(worker, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            connection.sendall(str(code if code >= 0 else 128 - code).encode())
            os._exit(0)
        if select.select([connection], [], [], 0.02)[0]:
            is_told = bool(connection.recv(1))
            os.kill(worker, signal.SIGTERM)
            if not is_told:
                os.waitpid(worker, 0)
                os._exit(0)


def place(given: list[int], wanted: list[int]) -> None:
    """Give the client's open files the numbers that they have there; close all others."""
    import fcntl

    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 500) for number in given]
    os.closerange(3, 500)
    for source, target in zip(high, wanted, strict=True):
        os.dup2(source, target)
        os.close(source)


def run(job: dict[str, object], client: str) -> None:
    """Do what Python does with its arguments."""
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.executable = client
    import multiprocessing

    multiprocessing.set_executable(client)
    if "torch" in sys.modules and "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    words = list(job["arguments"])
    warnings.resetwarnings()
    while words[0][0] == "-" and words[0] not in ("-c", "-m"):
        flag = words.pop(0)
        if flag[:2] == "-W":
            warnings.simplefilter(flag[2:] or words.pop(0))
    kind = words[0]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = os.path.dirname(os.path.abspath(words[0])) if kind[0] != "-" else os.getcwd()
    sys.path[:1] = [first, *(path for path in paths if path not in sys.path)]
    if kind == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        # Not run_path, which takes the module away before Python's last steps.
        main = ModuleType("__main__")
        main.__file__, main.__spec__ = kind, None
        sys.modules["__main__"] = main
        exec(compile(Path(kind).read_bytes(), kind, "exec"), main.__dict__)


def finish(action: Callable[[], None]) -> NoReturn:
    """End as Python does after an action, but leave the memory to the system."""
    code: object = 0
    try:
        action()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    gc.disable()
    for _name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(_name)
    gc.freeze()
    gc.enable()
    _job = serve(sys.argv[1])
    finish(lambda: run(_job, sys.argv[2]))
