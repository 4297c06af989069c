"""torchrun, with its own arguments, tied to the life of the supervisor that starts it."""

import sys

from torch.distributed.run import main

from training.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    main(sys.argv[1:])
