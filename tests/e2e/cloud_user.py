"""Somebody with a laptop in the data centre, who types `gptctl` and looks with `sky`."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from tests.e2e.datacentre import DataCentre
from tests.e2e.homes import Home
from tests.runs.user import User
from training.events import parse_lines
from training.layout import EVENTS, STATUS_JSON, Status, decode, run_key
from training.storage import open_store


class CloudUser(User):
    """A `User` whose programs run on the client's machine and whose store is the S3 server.

    The records and settings of gptctl are the user's own. What SkyPilot keeps in HOME, and its
    API server, are those of `home`, which many users may share.
    """

    patience_s = 300.0
    poll_s = 4.0  # a look takes two seconds of a core, most of them to import SkyPilot
    look_s = 0.5  # into the store, which takes next to nothing

    def __init__(
        self,
        datacentre: DataCentre,
        name: str,
        *,
        home: Home | None = None,
        recipe: str = "tiny",
    ) -> None:
        """`recipe`: its name, with which those of runs and machines begin."""
        folder = datacentre.folder / "users" / name
        folder.mkdir(parents=True)
        super().__init__(folder, store=datacentre.store_url(name))
        self.recipe = self.recipe.rename(folder / f"{recipe}.toml")
        self.datacentre = datacentre
        self.sky_home = home or datacentre.home
        self.env = {
            "XDG_DATA_HOME": str(folder / "data"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            **datacentre.s3.env,
        }
        with patch.dict(os.environ, self.env), datacentre.inside():
            self.records = open_store(self.store)

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """`gptctl`; signals sent to this process reach the program itself."""
        return self.datacentre.start(
            *(sys.executable, "-m", "gptctl", *arguments),
            env=self.env,
            home=self.sky_home,
            **({"cwd": self.home} | options),
        )

    def run(
        self, *arguments: str, exit_code: int = 0, timeout_s: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        return super().run(*arguments, exit_code=exit_code, timeout_s=timeout_s)

    def events(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        """As the store has them."""
        with self.datacentre.inside():
            data = self.records.read(run_key(run_id, EVENTS))
        return [event for event in parse_lines(data) if event["event"] == kind]

    def wait_for_step(self, run_id: str, step: int = 1) -> None:
        self._wait(run_id, lambda status: status.step >= step)

    def wait_for_end(self, run_id: str) -> Any:
        self._wait(run_id, lambda status: status.is_over)
        return self.status(run_id)

    def _wait(self, run_id: str, is_there: Callable[[Status], bool]) -> None:
        """Without a `gptctl status` every few seconds, which would starve what it looks at."""
        deadline = time.monotonic() + self.patience_s
        while True:
            with self.datacentre.inside():
                data = self.records.read(run_key(run_id, STATUS_JSON))
            status = decode(data, Status, name=STATUS_JSON)
            if is_there(status):
                return
            assert time.monotonic() < deadline, status
            assert not status.is_over, status
            time.sleep(self.look_s)

    def sky(
        self, *arguments: str, exit_code: int | None = 0, timeout_s: float = 240
    ) -> "subprocess.CompletedProcess[str]":
        """SkyPilot's own command line, without gptctl in between."""
        return self.datacentre.run(
            "sky", *arguments, home=self.sky_home, exit_code=exit_code, timeout_s=timeout_s
        )

    def status_all(self) -> Any:
        return self.json("status", *self.to_store)

    def on_node(self, run_id: str, command: str, exit_code: int = 0) -> str:
        """What a command prints on the run's first node."""
        arguments = ("ssh", run_id, *self.to_store, "--", command)
        return self.run(*arguments, exit_code=exit_code).stdout
