"""A real S3 server for the tests: SeaweedFS, with keys and folders of its own."""

import json
import os
import random
import secrets
import socket
import subprocess
import sysconfig
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

READY_WITHIN_S = 60.0
LOOPBACK = "127.0.0.1"
PORT_OPTIONS = (
    "s3.port",
    "s3.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "master.port",
    "master.port.grpc",
)


class S3Server:
    """Starts with `start`; after `stop`, another `start` serves the same data on the same port.

    `folder` holds the data and the log (`weed.log`); `host` is the address that it listens on.
    """

    def __init__(self, folder: Path, host: str = LOOPBACK) -> None:
        self._folder = folder
        self._host = host
        self._ports = dict(zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS), host), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._buckets: set[str] = set()
        self._key, self._secret = secrets.token_hex(10), secrets.token_hex(20)
        for name in ("data", "tmp"):
            (folder / name).mkdir(parents=True)
        (folder / "keys.json").write_text(json.dumps(self._identities()))

    @property
    def endpoint_url(self) -> str:
        return f"http://{self._host}:{self._ports['s3.port']}"

    @property
    def env(self) -> dict[str, str]:
        """Credentials for this server, and nothing of this machine's own AWS settings."""
        nowhere = str(self._folder / "absent")
        return {
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": nowhere,
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def url(self, bucket: str, prefix: str = "") -> str:
        """URL of a store here; the bucket (three letters or more) is made if it is not there.

        Few buckets, many prefixes: every bucket takes several volumes of the server's.
        """
        if bucket not in self._buckets:
            with closing(self._client()) as client:
                self._make_bucket(client, bucket)
        return f"s3://{bucket}/{prefix}?endpoint_url={self.endpoint_url}"

    def read(self, bucket: str, key: str) -> bytes:
        with closing(self._client()) as client:
            return client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def start(self) -> None:
        """Returns when requests are answered. Idempotent."""
        if self._process is not None:
            return
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={
                    "PATH": os.defpath,
                    "HOME": str(self._folder),
                    "TMPDIR": str(self._folder / "tmp"),
                },
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Gone on return. Idempotent.

        Killed, because a graceful end takes it 15 s; what was acknowledged is in its files.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            # It names these by port, and puts them here whatever TMPDIR says.
            for port in self._ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        return [
            str(Path(sysconfig.get_path("scripts"), "weed")),
            "-logtostderr=true",
            "server",
            f"-dir={self._folder / 'data'}",
            f"-ip={self._host}",
            f"-ip.bind={self._host}",
            "-filer",
            "-s3",
            f"-s3.config={self._folder / 'keys.json'}",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",  # what a restart waits for, 10 s by default
            "-volume.max=500",
            *(f"-{option}={port}" for option, port in self._ports.items()),
        ]

    def _identities(self) -> dict[str, object]:
        key = {"accessKey": self._key, "secretKey": self._secret}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "tests", "credentials": [key], "actions": actions}]}

    def _client(self):
        session = boto3.session.Session(self._key, self._secret, region_name="us-east-1")
        config = Config(connect_timeout=2, retries={"mode": "standard", "total_max_attempts": 1})
        return session.client("s3", endpoint_url=self.endpoint_url, config=config)

    def _make_bucket(self, client, bucket: str) -> None:
        if bucket not in self._buckets:
            # It may be there of a request whose answer came too late.
            with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=bucket)
            self._buckets.add(bucket)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        with closing(self._client()) as client:
            while True:
                try:
                    self._probe(client)
                    return
                except (BotoCoreError, ClientError) as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log = (self._folder / "weed.log").read_text(errors="replace")
                        raise RuntimeError(f"SeaweedFS did not start:\n{log[-4000:]}") from error
                    time.sleep(0.1)

    def _probe(self, client) -> None:
        """Stores an object: requests are answered some seconds before the volumes are there.

        Our keys are known to our server only, so that no other one can pass for it.
        """
        self._make_bucket(client, "ready")
        client.put_object(Bucket="ready", Key="probe", Body=b"ready")
        client.get_object(Bucket="ready", Key="probe")["Body"].close()


def free_ports(count: int, host: str = LOOPBACK) -> list[int]:
    """Distinct free ports below the range that the system gives to outgoing connections.

    Out of that range, a client that retries while the server is down cannot be given the
    server's own port, and block it.
    """
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            port = random.randrange(10_000, 32_000)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            ports.append(port)
        return ports


def start_server(folder: Path, host: str = LOOPBACK) -> S3Server:
    """A server that answers. If another process took one of its ports first, others are tried."""
    server = S3Server(folder / "first", host)
    try:
        server.start()
    except RuntimeError:
        server = S3Server(folder / "second", host)
        server.start()
    return server
