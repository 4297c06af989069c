"""How tests look behind the API: a socket file, which needs no network.

A call is (verb, arguments); the answer is the verb's value or the exception that it raised.
"""

from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.faults import Fault

if TYPE_CHECKING:
    from tests.e2e.fleet import Fleet

API_KEY = "secret_e2e_0123456789"  # the one that the API knows


def serve_control(path: Path, fleet: "Fleet", faults: list[Fault]) -> None:
    """Answers calls for ever."""
    verbs: dict[str, Callable[..., Any]] = {
        "vms": fleet.vms,
        "kill": fleet.kill,
        "terminate": fleet.terminate,
        "inject": faults.append,
        "clear_faults": faults.clear,
    }
    with Listener(str(path), family="AF_UNIX") as listener:
        while True:
            with listener.accept() as connection:
                verb, arguments = connection.recv()
                try:
                    connection.send(verbs[verb](*arguments))
                except Exception as error:
                    connection.send(error)


def call_control(path: Path, verb: str, *arguments: Any) -> Any:
    with Client(str(path), family="AF_UNIX") as connection:
        connection.send((verb, arguments))
        answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer
