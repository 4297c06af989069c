"""Homes on the client's machine: whose Lambda key it is, and which API server of SkyPilot's."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.control import API_KEY

FIRST_PORT = 46580  # SkyPilot's own default
# There is no controller VM on Lambda: managed jobs are controlled by the API server.
CONFIG = """\
jobs:
  controller:
    consolidation_mode: true
"""


@dataclass(frozen=True)
class Home:
    folder: Path
    api_server_port: int

    @property
    def key_file(self) -> Path:
        return self.folder / ".lambda_cloud" / "lambda_keys"


def make_home(folder: Path, number: int, api_key: str = API_KEY) -> Home:
    """A home that no program has used yet. Each number has an API server of its own."""
    home = Home(folder, FIRST_PORT + number)
    home.key_file.parent.mkdir(parents=True)
    home.key_file.write_text(f"api_key = {api_key}\n")
    (folder / ".sky").mkdir()
    (folder / ".sky" / "config.yaml").write_text(CONFIG)
    (folder / "tmp").mkdir()
    return home


def home_env(home: Home, *, ca: Path, wheels: Path) -> dict[str, str]:
    """Everything a program of that home has in its environment."""
    return {
        "HOME": str(home.folder),
        "TMPDIR": str(home.folder / "tmp"),
        "USER": "tester",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PATH": f"{sysconfig.get_path('scripts')}:/usr/sbin:/usr/bin:/sbin:/bin",
        "REQUESTS_CA_BUNDLE": str(ca),
        "SSL_CERT_FILE": str(ca),
        "SKYPILOT_API_SERVER_LOCAL_PORT": str(home.api_server_port),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        # Else there are as many controllers of managed jobs as memory holds, 2 s of CPU each.
        "SKYPILOT_POD_MEMORY_GB_LIMIT": "6",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
