"""Two processes that torch treats as one distributed run; ``test_trainer.py`` starts torchrun itself."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import warm


def run_on_two(function: Callable[..., Any], *args: Any, folder: Path, timeout: float = 300) -> None:
    """Runs a module-level function in both until it ends; output goes to ``folder``. Fails unless both succeed.

    The environment is set as torchrun would set it for each of them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told["GLOO_SOCKET_IFNAME"] = "lo"
    logs = [folder / f"log{rank}" for rank in range(2)]
    started = [
        warm.start(function, *args, log=log, **told, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, log in enumerate(logs)
    ]
    for process in started:
        process.join(timeout)
    printed = "".join(log.read_text()[-2000:] for log in logs if log.exists())
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()  # if one has failed, the other may be waiting for it
    assert codes == [0, 0], printed
