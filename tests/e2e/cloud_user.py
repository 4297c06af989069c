"""Somebody with a laptop in the data centre, who types `gptctl` and looks with `sky`."""

import subprocess
import sys
from typing import Any

from tests.e2e.datacentre import DataCentre
from tests.e2e.homes import Home
from tests.runs.user import User


class CloudUser(User):
    """A `User` whose programs run on the client's machine and whose store is the S3 server.

    The records and settings of gptctl are the user's own. What SkyPilot keeps in HOME, and its
    API server, are those of `home`, which many users may share.
    """

    patience_s = 300.0
    poll_s = 4.0  # a look takes two seconds of a core, most of them to import SkyPilot

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
