"""The data centre itself: that it is what the scenarios take it for."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.control import API_KEY
from tests.e2e.datacentre import DataCentre
from tests.e2e.fleet import Vm

GPU_QUERY = "name,driver_version,memory.total,ecc.errors.uncorrected.volatile.total"


class Api:
    """A customer with curl, and a key for ssh."""

    def __init__(self, datacentre: DataCentre, folder: Path) -> None:
        self.datacentre = datacentre
        self.key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        public_key = self.key.with_suffix(".pub").read_text()
        self.ask("POST", "ssh-keys", {"name": self.name, "public_key": public_key})

    @property
    def name(self) -> str:
        return self.key.parent.name

    def ask(self, method: str, path: str, body: Any = None, key: str = API_KEY) -> Any:
        answer = self.datacentre.run(
            *("curl", "--silent", "--show-error", "--request", method),
            *("--header", f"Authorization: Bearer {key}", "--data", json.dumps(body)),
            f"https://cloud.lambdalabs.com/api/v1/{path}",
        )
        return json.loads(answer.stdout)

    def launch(self, kind: str, region: str = "us-east-1") -> Any:
        request = {"instance_type_name": kind, "region_name": region, "name": self.name}
        return self.ask(
            "POST", "instance-operations/launch", request | {"ssh_key_names": [self.name]}
        )

    def launch_active(self, kind: str) -> Vm:
        (vm_id,) = self.launch(kind)["data"]["instance_ids"]
        deadline = time.monotonic() + 30
        while True:
            (vm,) = (vm for vm in self.datacentre.instances() if vm.id == vm_id)
            if vm.status == "active":
                return vm
            assert time.monotonic() < deadline, vm
            time.sleep(0.1)

    def ssh(self, vm: Vm, command: str, exit_code: int = 0) -> str:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        return self.datacentre.run(
            *("ssh", "-i", str(self.key), *(f"-o{option}" for option in options)),
            *(f"ubuntu@{vm.ip}", command),
            exit_code=exit_code,
        ).stdout

    def terminate(self, *vms: Vm) -> Any:
        return self.ask(
            "POST", "instance-operations/terminate", {"instance_ids": [vm.id for vm in vms]}
        )


@pytest.fixture
def api(datacentre: DataCentre, tmp_path: Path) -> Api:
    return Api(datacentre, tmp_path)


def test_vms_have_the_gpus_of_their_type_or_the_defect_that_was_asked_for(
    datacentre: DataCentre, api: Api
) -> None:
    datacentre.inject("launch", defect={"count": 7, "driver_version": "470.57.02"}, times=1)
    bad = api.launch_active("gpu_8x_a100_80gb_sxm4")
    good = api.launch_active("gpu_8x_h100_sxm5")
    datacentre.inject("launch", defect={"driver_version": None})
    bare = api.launch_active("gpu_1x_a10")
    without = api.launch_active("cpu_4x_general")

    query = f"nvidia-smi --query-gpu={GPU_QUERY} --format=csv,noheader,nounits"
    assert api.ssh(bad, query) == "NVIDIA A100-SXM4-80GB, 470.57.02, 81920, 0\n" * 7
    assert api.ssh(good, query) == "NVIDIA H100 80GB HBM3, 570.148.08, 81559, 0\n" * 8
    assert api.ssh(good, "nvidia-smi --query-gpu=memory.total,index --format=csv").splitlines()[
        :2
    ] == ["memory.total [MiB], index", "81559 MiB, 0"]
    assert len(api.ssh(good, "nvidia-smi -L").splitlines()) == 8
    assert "stand-in" in api.ssh(good, "nvidia-smi")
    api.ssh(good, "nvidia-smi --query-gpu=colour --format=csv", exit_code=2)
    for vm in (bare, without):
        api.ssh(vm, "command -v nvidia-smi", exit_code=1)
    assert api.ssh(without, "ls -A /srv /home").split() == ["/home:", "ubuntu", "/srv:", "wheels"]

    api.terminate(bad, good, bare, without)
    assert datacentre.wait_until_empty(10) == []
    assert {vm.status for vm in datacentre.history()[-4:]} == {"terminated"}


def test_faults_strike_where_and_as_often_as_asked(datacentre: DataCentre, api: Api) -> None:
    datacentre.inject_no_capacity(region="us-east-1", times=None)
    for _ in range(2):
        code = api.launch("cpu_4x_general")["error"]["code"]
        assert code == "instance-operations/launch/insufficient-capacity"
    datacentre.inject("launch", hang=True, region="us-west-1")
    datacentre.inject("launch", no_ssh=True, region="us-west-1")
    for _ in range(2):
        api.launch("cpu_4x_general", "us-west-1")
    hanging, deaf = datacentre.instances()
    assert (hanging.status, deaf.status) == ("booting", "active")

    datacentre.inject("terminate", status=500)
    assert "error" in api.terminate(hanging, deaf)
    assert len(datacentre.instances()) == 2
    datacentre.inject("terminate", status=429, although_done=True)
    assert "error" in api.terminate(hanging, deaf)
    assert datacentre.wait_until_empty(10) == []
    assert "error" in api.ask("GET", "instances", key="another")
    assert [r["status"] for r in datacentre.requests()[-3:]] == [500, 429, 401]


def test_a_killed_vm_is_gone_from_the_api_and_stays_on_the_bill(
    datacentre: DataCentre, api: Api
) -> None:
    vm = api.launch_active("gpu_8x_a100_80gb_sxm4")
    datacentre.kill_vm(vm.name)
    assert api.ask("GET", "instances")["data"] == []
    killed = datacentre.history()[-1]
    assert (killed.id, killed.status) == (vm.id, "killed")
    assert killed.ended_at is not None
    dollars = 22.32 * (killed.ended_at - killed.started_at) / 3600
    assert float(datacentre.billed_usd(vm.name)) == pytest.approx(dollars)
    api.datacentre.run("nc", "-z", "-w", "1", vm.ip, "22", exit_code=1)
