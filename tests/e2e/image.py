"""What every VM is made of: a layer over this machine's own system, with SkyPilot's runtime.

The layer hides all of this machine that is not its system, so that nothing on a node works by
accident: no checkout, no virtual environment, no home but `ubuntu`'s.
"""

import os
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.e2e.network import BRIDGE_IP

HERE = Path(__file__).parent
SYSTEM = {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "var"}
MADE_BY_NODE = {"dev", "proc", "sys", "run", "tmp"}
EMPTIED = {"home": 0o755, "root": 0o700, "opt": 0o755, "mnt": 0o755, "srv": 0o755}

# What PAM gives to every ssh session, and so to SkyPilot's runtime and to every job.
ENVIRONMENT = """\
PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LANG=C.UTF-8
REQUESTS_CA_BUNDLE=/etc/gptctl-e2e-ca.pem
UV_NO_INDEX=1
UV_OFFLINE=1
UV_FIND_LINKS=/srv/wheels
UV_PYTHON_DOWNLOADS=never
"""


def build_image(
    image: Path, *, ca: Path, wheels: Path, skypilot: Path, uv: Path, private: Iterable[Path]
) -> None:
    """Fills `image`, a new folder on a file system that is not that of `/`.

    `skypilot` is the wheel that its client sends to nodes (`build_skypilot`), and
    `private` are folders of this machine that nodes must not see, wherever they are. The
    wheels are mounted, not copied: who removes the image unmounts them.
    """
    layer = image / "layer"
    for folder in (layer, image / "work", image / "root", image / "wheels"):
        folder.mkdir(parents=True)
    hide_machine(layer, private)
    write_files(layer, ca)
    subprocess.run(["mount", "--bind", str(wheels), str(image / "wheels")], check=True)
    with (image / "build.log").open("wb") as log:
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "bash",
                str(HERE / "image.sh"),
                *map(str, (image, uv, skypilot)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    assert done.returncode == 0, (image / "build.log").read_text()


def hide_machine(layer: Path, private: Iterable[Path]) -> None:
    for entry in Path("/").iterdir():
        if entry.name in EMPTIED:
            make_empty(layer / entry.name, EMPTIED[entry.name])
        elif entry.name not in SYSTEM | MADE_BY_NODE and not entry.is_symlink():
            # A device of number 0:0 in an upper layer says that there is nothing below.
            os.mknod(layer / entry.name, stat.S_IFCHR, os.makedev(0, 0))
    for path in private:
        if path.parts[1] in SYSTEM:
            make_empty(layer.joinpath(*path.parts[1:]))


def make_empty(folder: Path, mode: int = 0o755) -> None:
    """A folder through which the layers below are not seen."""
    folder.mkdir(parents=True)
    folder.chmod(mode)
    os.setxattr(folder, "trusted.overlay.opaque", b"y")


def write_files(layer: Path, ca: Path) -> None:
    (layer / "srv" / "wheels").mkdir()
    etc = layer / "etc"
    (etc / "sudoers.d").mkdir(parents=True)
    (etc / "sudoers.d").chmod(0o750)
    (etc / "sudoers.d" / "ubuntu").write_text("ubuntu ALL=(ALL) NOPASSWD:ALL\n")
    (etc / "sudoers.d" / "ubuntu").chmod(0o440)
    (etc / "environment").write_text(ENVIRONMENT)
    (etc / "gptctl-e2e-ca.pem").write_bytes(ca.read_bytes())
    names = "cloud.lambdalabs.com cloud.lambda.ai"
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{BRIDGE_IP} {names}\n")
    (etc / "resolv.conf").write_text("")
