"""A certificate authority that only the data centre trusts, and the server's certificate."""

from pathlib import Path

from tests.e2e.network import BRIDGE_IP, HOSTS, PROBED_IPS, run

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
VALID_DAYS = "2"


def make_certificates(folder: Path) -> None:
    """`ca.pem`, `server.pem` and their keys, in a new folder."""
    folder.mkdir()
    names = [f"DNS:{host}" for host in HOSTS]
    names += [f"IP:{ip}" for ip in ("127.0.0.1", BRIDGE_IP, *PROBED_IPS)]
    ca = (str(folder / "ca.pem"), str(folder / "ca.key"))
    run(
        *("openssl", "req", "-x509", *NEW_KEY, "-days", VALID_DAYS),
        *("-subj", "/CN=private data centre of gptctl's tests"),
        *("-addext", "basicConstraints=critical,CA:TRUE"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        *("-out", ca[0], "-keyout", ca[1]),
    )
    run(
        *("openssl", "req", "-x509", *NEW_KEY, "-days", VALID_DAYS),
        *("-CA", ca[0], "-CAkey", ca[1], "-subj", f"/CN={HOSTS[0]}"),
        *("-addext", f"subjectAltName={','.join(names)}"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-out", str(folder / "server.pem"), "-keyout", str(folder / "server.key")),
    )
