"""What can go wrong on a node, in one small tree.

TrainingError            a fault that somebody can mend; never a bug
├── ConfigError          a value in the recipe makes no sense
├── DataError            text or shards that cannot be trained on
├── CheckpointError      no checkpoint, or one that is not what its manifest says
├── NotFiniteError       the loss or the gradient became NaN or infinite
├── NoSpaceError         the disk is full
├── OutOfMemoryError     not even one sequence at a time fits the GPU
└── StorageError         the store refused, and would refuse again
    ├── ObjectNotFoundError    nothing is stored under that key
    ├── ObjectExistsError      something is, and it must not be replaced
    ├── ObjectDamagedError     what came down is not what was stored
    └── StorageUnavailableError  out of reach now: worth another try
"""


class TrainingError(Exception):
    """A message for the user (what and why) and a hint (what to do next)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def report(self) -> str:
        """For the log of the program that fails with it."""
        return f"error: {self.message}\n  hint: {self.hint}"


class ConfigError(TrainingError):
    pass


class DataError(TrainingError):
    pass


class CheckpointError(TrainingError):
    pass


class NotFiniteError(TrainingError):
    pass


class NoSpaceError(TrainingError):
    pass


class OutOfMemoryError(TrainingError):
    pass


class StorageError(TrainingError):
    pass


class ObjectNotFoundError(StorageError):
    pass


class ObjectExistsError(StorageError):
    pass


class ObjectDamagedError(StorageError):
    pass


class StorageUnavailableError(StorageError):
    pass
