from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs.user import User, leave_nothing_running


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    somebody = User(tmp_path)
    yield somebody
    leave_nothing_running(somebody)
