#!/usr/bin/python3 -I
# ruff: noqa: T201
"""A stand-in for NVIDIA's nvidia-smi on a VM of the private data centre. There is no GPU here.

It answers, in the real one's format, what /etc/gptctl-e2e/gpus.json says, and says what it is
when it is called without arguments. A VM without GPUs, or without a driver, does not have it.
"""

import json
import sys

UNITS = {"memory.total": "MiB", "memory.used": "MiB", "memory.free": "MiB"}
UNLOADED = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)


def main(arguments):
    with open("/etc/gptctl-e2e/gpus.json") as file:  # noqa: PTH123 - quick to start
        gpus = json.load(file)
    if not gpus["driver_version"]:
        print(UNLOADED)
        return 9
    if not gpus["count"]:
        print("No devices were found")
        return 6
    devices = [describe(index, gpus) for index in range(gpus["count"])]
    options = dict(argument.partition("=")[::2] for argument in arguments)
    if "-L" in options or "--list-gpus" in options:
        for gpu in devices:
            print(f"GPU {gpu['index']}: {gpu['name']} (UUID: {gpu['uuid']})")
    elif "--query-gpu" in options:
        return query(devices, options["--query-gpu"].split(","), options.get("--format", "csv"))
    else:
        print(f"stand-in for nvidia-smi: {len(devices)} pretended GPUs, no real device")
        print(f"Driver Version: {gpus['driver_version']}")
    return 0


def describe(index, gpus):
    return {
        "index": index,
        "name": gpus["name"],
        "gpu_name": gpus["name"],
        "uuid": f"GPU-stand-in-{index}",
        "count": gpus["count"],
        "driver_version": gpus["driver_version"],
        "memory.total": gpus["memory_mib"],
        "memory.used": 0,
        "memory.free": gpus["memory_mib"],
        "ecc.mode.current": "Enabled",
        "ecc.errors.uncorrected.volatile.total": gpus["ecc_errors"],
    }


def query(devices, fields, form):
    fields = [field.strip() for field in fields]
    for field in fields:
        if field not in devices[0]:
            print(f'Field "{field}" is not a valid field to query.\n')
            return 2
    if "noheader" not in form:
        print(", ".join(f"{name} [{UNITS[name]}]" if name in UNITS else name for name in fields))
    units = {} if "nounits" in form else UNITS
    for gpu in devices:
        print(", ".join(f"{gpu[name]} {units.get(name, '')}".strip() for name in fields))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
