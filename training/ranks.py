"""torchrun, with its own arguments, tied to the life of the supervisor that starts it."""

import os
import sys

from torch.distributed.run import main

from training.processes import PARENT_PID, end_with_parent

if __name__ == "__main__":
    end_with_parent()
    os.environ[PARENT_PID] = str(os.getpid())  # of the ranks
    main(sys.argv[1:])
