"""Packages for machines without a package index, downloaded once and kept between runs."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from gptctl.backends.node_requirements import node_requirements

# SkyPilot builds a wheel of itself for its nodes, and pip builds that with these.
BUILD_REQUIREMENTS = ("setuptools", "wheel", "packaging")
NODE_PYTHON = "/usr/bin/python3"  # that of a node is this machine's own


def node_wheels() -> Path:
    return fetch_wheels(node_requirements(), NODE_PYTHON)


def build_wheels() -> Path:
    return fetch_wheels(list(BUILD_REQUIREMENTS), sys.executable)


def fetch_wheels(requirements: list[str], python: str) -> Path:
    """A folder with their wheels and those they need; downloaded if it is not there yet."""
    key = hashlib.sha256("\n".join((python, *requirements)).encode()).hexdigest()[:12]
    folder = cache_folder() / f"wheels-{key}"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--python", python, "--quiet"),
                *("download", "--only-binary=:all:", "--dest", str(unfinished), *requirements),
            ],
            check=True,
        )
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    return folder


def cache_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptctl-e2e"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
