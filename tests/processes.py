"""Processes of a test, found among all by their command lines."""

from collections.abc import Callable

import psutil


def find_processes(is_wanted: Callable[[str], bool]) -> list[psutil.Process]:
    """Those alive whose command line, joined by spaces, is wanted.

    Any of them may end while this looks: it is then left out, as one that ended before.
    """
    found = []
    for process in psutil.process_iter():
        try:
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if is_alive and is_wanted(" ".join(process.cmdline())):
                found.append(process)
        except psutil.Error:
            continue
    return found
