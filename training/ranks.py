"""torchrun, with its own arguments, tied to the life of the supervisor that starts it."""

import os
import sys

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from training.cluster import JOIN_TIMEOUT_S, NODES_MISSING, OUT_OF_MEMORY, interface_towards
from training.processes import PARENT_PID, end_with_parent

HEAD = "--master-addr"


def run(arguments: list[str]) -> str | int | None:
    """The exit code, which says more than torchrun's own where a rank ran out of memory.

    Raises torch's ChildFailedError, which names the rank that failed first.
    """
    if HEAD in arguments:
        head = arguments[arguments.index(HEAD) + 1]
        if interface := interface_towards(head):
            # For gloo only: nccl finds fast networks beside it that do not lead to this address.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        main(arguments)
    except ChildFailedError as error:
        if any(failure.exitcode == OUT_OF_MEMORY for failure in error.failures.values()):
            print(error, file=sys.stderr)
            return OUT_OF_MEMORY
        raise
    except DistError as error:
        print(
            f"error: the nodes did not meet within {JOIN_TIMEOUT_S} s: {error}\n"
            "  hint: one did not start, or a firewall stands between them",
            file=sys.stderr,
        )
        return NODES_MISSING
    return 0


if __name__ == "__main__":
    end_with_parent()
    os.environ[PARENT_PID] = str(os.getpid())  # of the ranks
    sys.exit(run(sys.argv[1:]))
