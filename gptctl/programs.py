"""The programs of `training` that need torch: started as processes, never imported."""

import sys
from importlib.util import find_spec

from gptctl.errors import BackendError


def training_program(module: str, *arguments: str) -> list[str]:
    """Command line of `python -m training.<module>`. Raises BackendError without torch."""
    if find_spec("torch") is None:
        raise BackendError(
            "torch is not installed in this Python, so nothing can be trained or sampled here",
            hint="pip install 'gptctl[train]'",
        )
    # -P: what lies in the folder that the user is in cannot shadow a module.
    return [sys.executable, "-P", "-m", f"training.{module}", *arguments]
