"""Three runs whose laptop, SkyPilot's API server with it, is switched off while they train.

They take minutes, most of them waiting, so they are started with the session and looked at in
its end; meanwhile other tests run.
"""

import threading
import time

from tests.e2e.cloud_user import CloudUser
from tests.e2e.datacentre import DataCentre
from tests.runs.user import ENDLESS

FINISHING, SPENDING, HANGING = NAMES = ("off-finishing", "off-spending", "off-hanging")
BUDGET_USD = "0.019"  # at $0.20 an hour 5 min 42 s, of which 1 min 35 s are kept back to end
MAX_HOURS = "0.08"
OPTIONS = {
    FINISHING: ("--set", "train.steps=1500", "--budget", "0.10"),
    SPENDING: (*ENDLESS, "--set", "checkpoint.every=100000", "--budget", BUDGET_USD),
    HANGING: (*ENDLESS, "--set", "checkpoint.every=100000", "--max-hours", MAX_HOURS),
}


class SwitchedOff(threading.Thread):
    def __init__(self, datacentre: DataCentre) -> None:
        super().__init__(daemon=True)
        self.datacentre = datacentre
        self.home = datacentre.add_home("switched-off")
        self.user = CloudUser(datacentre, "switched-off", home=self.home)
        self.error: BaseException | None = None
        self.step_when_hung = 0

    def run(self) -> None:
        try:
            self.launch_all()
            self.hang()
            self.datacentre.kill_api_server(self.home)
        except BaseException as error:
            self.error = error

    def launch_all(self) -> None:
        """All at once, as three shells would."""
        launches = [
            self.user.start(
                *(*self.user.launch_arguments, "--cloud", "lambda", "--detach"),
                *("--name", name, *OPTIONS[name]),
            )
            for name in NAMES
        ]
        for launch in launches:
            out, err = launch.communicate(timeout=400)
            assert launch.returncode == 0, (out, err)

    def hang(self) -> None:
        self.user.wait_for_step(HANGING, 1)
        self.user.on_node(HANGING, "pkill -STOP -f training.supervise")
        self.step_when_hung = self.user.status(HANGING)["step"]

    def wait(self, timeout_s: float) -> None:
        """Until the cloud has none of their machines left."""
        deadline = time.monotonic() + timeout_s
        self.join(timeout_s)
        if self.error is not None:
            raise self.error
        while left := [vm for vm in self.datacentre.instances() if vm.name.startswith("off-")]:
            assert time.monotonic() < deadline, left
            time.sleep(1)
