"""Tests that mostly wait run in threads of their own, from the start of the session on.

A test marked `background(lane)` runs in that lane, one after the other; when pytest comes to it,
it waits for what came of it. Its machines' names begin with the lane's, which tells them from
those that a test in the foreground must leave none of.
"""

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from tests.e2e.cloud_user import CloudUser
from tests.e2e.datacentre import DataCentre

MARK = "background"


def lane_of(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker(MARK)
    return None if mark is None else str(mark.args[0])


class Lane(threading.Thread):
    """With an API server of its own, which its tests may kill."""

    def __init__(self, datacentre: DataCentre, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._datacentre = datacentre
        self._home = datacentre.add_home(name)
        self.outcomes: dict[str, Future[None]] = {}
        self._items: list[Any] = []

    def add(self, item: Any) -> None:
        self._items.append(item)
        self.outcomes[item.nodeid] = Future()

    def run(self) -> None:
        for item in self._items:
            outcome = self.outcomes[item.nodeid]
            try:
                number = len([done for done in self.outcomes.values() if done.done()])
                name = f"{self.name}-{number}"
                user = CloudUser(self._datacentre, name, home=self._home, recipe=name)
                item.obj(user)
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(None)
