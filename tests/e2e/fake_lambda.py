"""Lambda's REST API, as far as SkyPilot uses it: `python -m tests.e2e.fake_lambda FOLDER`.

Written from what SkyPilot's client sends and expects, and from Lambda's public documentation.
Runs in the client's network, with TLS, and answers for the price tables too. Tests steer it
through FOLDER/cloud.sock (`control.py`); every request is a line of FOLDER/requests.jsonl.
"""

import json
import ssl
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.e2e.catalogue import catalogue_file
from tests.e2e.control import API_KEY, serve_control
from tests.e2e.faults import Fault, take_fault
from tests.e2e.fleet import Fleet, Vm
from tests.e2e.instance_types import INSTANCE_TYPES, REGIONS
from tests.e2e.network import BRIDGE_IP, PROBED_IPS

ADDRESSES = ("127.0.0.1", BRIDGE_IP, *PROBED_IPS)
Answer = tuple[int, Any]


class Account:
    """One customer's keys and VMs; a method for each thing the API can do."""

    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet(folder)
        self.faults: list[Fault] = []
        self._ssh_keys: dict[str, dict[str, str]] = {}
        self._firewall_rules: list[Any] = []
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, body: Any) -> Answer:
        """What the API says to one authorized request."""
        operation = path.rsplit("/", 1)[-1]
        with self._lock:
            fault = take_fault(self.faults, operation, body or {}, self._names(body or {}))
        if fault is None or fault.status is None:
            return self._do(method, path, body, fault)
        if fault.although_done:
            self._do(method, path, body, None)
        return error(fault.status, fault.code, fault.message)

    def _names(self, body: dict[str, Any]) -> list[str]:
        """Of the VMs that a request is about."""
        ids = body.get("instance_ids", ())
        named = [vm.name for vm in self.fleet.vms(alive=True) if vm.id in ids]
        return [*named, body.get("name") or ""]

    def _do(self, method: str, path: str, body: Any, fault: Fault | None) -> Answer:
        match method, path:
            case "GET", "/instances":
                return 200, [as_instance(vm) for vm in self.fleet.vms(alive=True)]
            case "GET", "/instance-types":
                return 200, instance_types()
            case "GET", "/ssh-keys":
                return 200, list(self._ssh_keys.values())
            case "POST", "/ssh-keys":
                key = {"id": uuid.uuid4().hex, **body}
                self._ssh_keys[key["name"]] = key
                return 200, key
            case "POST", "/instance-operations/launch":
                return self._launch(body, fault)
            case "POST", "/instance-operations/terminate":
                return self._terminate(body["instance_ids"])
            case "GET", "/firewall-rules":
                return 200, self._firewall_rules
            case "PUT", "/firewall-rules":
                self._firewall_rules = body["data"]
                return 200, self._firewall_rules
        return error(404, "global/object-does-not-exist", f"there is no {method} {path}")

    def _launch(self, body: dict[str, Any], fault: Fault | None) -> Answer:
        if body["instance_type_name"] not in INSTANCE_TYPES or body["region_name"] not in REGIONS:
            return error(400, "global/invalid-parameters", "no such instance type or region")
        keys = [self._ssh_keys[name]["public_key"].strip() for name in body["ssh_key_names"]]
        return 200, {"instance_ids": [self.fleet.launch(body, keys, fault).id]}

    def _terminate(self, ids: list[str]) -> Answer:
        known = {vm.id for vm in self.fleet.vms(alive=True)}
        if not known.issuperset(ids):
            return error(404, "global/object-does-not-exist", "Specified instance does not exist.")
        return 200, {"terminated_instances": [as_instance(self.fleet.terminate(i)) for i in ids]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    account: Account
    log: Path
    _log_lock = threading.Lock()

    def do_HEAD(self) -> None:
        """SkyPilot's question whether the network is up."""
        self._send(200, b"", "text/plain")

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null")
        path = self.path.partition("?")[0]
        if (table := catalogue_file(path)) is not None:
            self._send(200, table.encode(), "text/csv")
            return
        status, answer = self._answer(path, body)
        self._record({"path": path, "body": body, "status": status})
        document = {"data": answer} if status == 200 else answer
        self._send(status, json.dumps(document).encode(), "application/json")

    do_POST = do_GET  # noqa: N815 - the base class's names
    do_PUT = do_GET  # noqa: N815

    def _answer(self, path: str, body: Any) -> Answer:
        if not path.startswith("/api/v1/"):
            return error(404, "global/object-does-not-exist", path)
        if self.headers.get("Authorization") != f"Bearer {API_KEY}":
            message = "API key was invalid, expired, or deleted."
            return error(401, "global/invalid-api-key", message)
        return self.account.answer(self.command, path.removeprefix("/api/v1"), body)

    def _record(self, what: dict[str, Any]) -> None:
        who = {"at": time.time(), "from": self.client_address[0], "method": self.command}
        with self._log_lock, self.log.open("a") as log:
            log.write(json.dumps(who | what) + "\n")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Silent: `requests.jsonl` says it."""


def error(status: int, code: str, message: str) -> Answer:
    return status, {"error": {"code": code, "message": message, "suggestion": ""}}


def as_instance(vm: Vm) -> dict[str, Any]:
    """As Lambda shows it: without an address until it is active."""
    address = vm.ip if vm.status != "booting" else None
    return {
        "id": vm.id,
        "name": vm.name,
        "ip": address,
        "private_ip": address,
        "status": vm.status,
        "hostname": vm.node,
        "ssh_key_names": vm.ssh_key_names,
        "file_system_names": [],
        "region": {"name": vm.region, "description": ""},
        "instance_type": {
            "name": vm.instance_type,
            "price_cents_per_hour": vm.cents_per_hour,
        },
    }


def instance_types() -> dict[str, Any]:
    regions = [{"name": region, "description": ""} for region in REGIONS]
    return {
        kind.name: {
            "instance_type": {
                "name": kind.name,
                "description": kind.name,
                "price_cents_per_hour": kind.cents_per_hour,
                "specs": {
                    "vcpus": kind.vcpus,
                    "memory_gib": kind.memory_gib,
                    "storage_gib": 512,
                    "gpus": kind.gpu_count,
                },
            },
            "regions_with_capacity_available": regions,
        }
        for kind in INSTANCE_TYPES.values()
    }


def main(folder: Path) -> None:
    Handler.account = Account(folder)
    Handler.log = folder / "requests.jsonl"
    Handler.log.touch()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "pki" / "server.pem", folder / "pki" / "server.key")
    for address in ADDRESSES:
        server = ThreadingHTTPServer((address, 443), Handler)
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=server.serve_forever).start()
    serve_control(folder / "cloud.sock", Handler.account.fleet, Handler.account.faults)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
