"""What a user can be told, in one tree, and the exit code that goes with it.

    GptctlError                 what went wrong, why, and a hint: what to do next
    ├── UsageError         2    a flag, a recipe or a setting that makes no sense
    ├── PlanRefusedError   3    the plan cannot or must not be launched
    ├── RunFailedError     4    the run ended in failure, or died
    ├── NotFoundError      6    no such run, recipe, checkpoint or log
    └── BackendError       8    the cloud, or this machine, did not do what was asked
        └── CapacityError  8    no cloud has such a machine now
A `training.errors.StorageError` exits with 7, any other `TrainingError` with 4. A run that
stopped at its budget or its deadline exits with 5, one that a user stopped with 9; Ctrl-C
with 130, a reader that went away (`| head`) with 141. Anything else is a bug: 1. Errors are
printed in one place, `gptctl.cli`.
"""

from training.errors import StorageError, TrainingError

EXIT_BUG = 1
EXIT_STOPPED_BY_BUDGET = 5
EXIT_STOPPED_BY_USER = 9
EXIT_INTERRUPTED = 130


class GptctlError(Exception):
    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GptctlError):
    exit_code = 2


class PlanRefusedError(GptctlError):
    exit_code = 3


class RunFailedError(GptctlError):
    exit_code = 4


class NotFoundError(GptctlError):
    exit_code = 6


class BackendError(GptctlError):
    exit_code = 8


class CapacityError(BackendError):
    pass


def exit_code(error: GptctlError | TrainingError) -> int:
    if isinstance(error, GptctlError):
        return error.exit_code
    return 7 if isinstance(error, StorageError) else RunFailedError.exit_code
