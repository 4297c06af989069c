"""What this machine must have before there can be a data centre."""

import os
import shutil

# A program of each Debian package that the client's machine or a node uses.
PROGRAMS = {
    "/usr/sbin/sshd": "openssh-server",
    "rsync": "rsync",
    "sudo": "sudo",
    "ip": "iproute2",
    "patch": "patch",
    "lsof": "lsof",
    "pkill": "procps",
    "nc": "netcat-openbsd",
    "openssl": "openssl",
    "curl": "curl",
    "unshare": "util-linux",
    "/usr/bin/python3": "python3",
}


def what_is_missing() -> str:
    """Empty, or what to do about it."""
    if os.geteuid() != 0:
        return "the data centre makes network namespaces and mounts: run `make e2e` as root"
    missing = sorted({p for program, p in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        return f"Debian packages are missing: `apt-get install {' '.join(missing)}` (see .ci/run)"
    return ""
