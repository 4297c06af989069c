"""A small Hub on loopback: the real huggingface_hub and datasets talk to it through HF_ENDPOINT.

It speaks the part of the Hub's API that reading data sets and models takes: a repository at a
revision, its tree with sizes and LFS hashes, `paths-info`, `auth-check`, and `resolve` with HEAD,
ranges and ETags, where large files redirect to another path, as to the Hub's CDN. Models can be
published to it, too: `tests/hub_writes.py`. It has no Xet storage, so that clients fetch and send
by plain HTTP. It can be told to fail: `inject(Fault(...))`.
"""

import fnmatch
import hashlib
import json
import re
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlsplit

import huggingface_hub
import pytest

from tests.hub_writes import MODELS, Account, HubWrites, RefusalError

LOOPBACK = "127.0.0.1"
LFS_SUFFIXES = {".parquet", ".bin", ".npy", ".gz", ".zst", ".safetensors"}
SMALL_CHUNK_BYTES = 4096
CHUNK_BYTES = 1 << 20

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_OF_REPO = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.*))?)?)?")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LFS = re.compile(r"/lfs/((?:models/)?[^/]+/[^/]+)/([0-9a-f]{40})/(.+)")


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the next `times` requests whose path matches the glob `path`.

    Paths are those of the URL, percent-decoded: `/datasets/owner/name/resolve/REVISION/FILE`, then
    `/lfs/owner/name/COMMIT/FILE` where the file is a large one.
    """

    path: str = "*"
    times: int = 1
    status: int | None = None
    """Answered instead: 429, 503, 500."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent along with `status`: Retry-After."""
    cut_after_bytes: int | None = None
    """The connection is reset when so much of the content was sent."""
    wrong_bytes: bool = False
    """As many bytes as there should be, but others."""
    bytes_per_s: float | None = None
    ignores_range: bool = False
    """Sends the whole file, as a proxy may."""


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    at_s: float
    """On time.monotonic's clock."""


@dataclass(kw_only=True)
class _Repository:
    commits: list[str] = field(default_factory=list)
    revisions: dict[str, str] = field(default_factory=dict)
    """Branches and tags."""
    allowed_tokens: frozenset[str] | None = None
    """Who may read it; None: everybody."""
    private: bool = False


class HubServer:
    """Repositories under `folder`, one folder a commit: `owner/name/COMMIT/...`.

    Those of models are called `models/owner/name`.
    """

    def __init__(self, folder: Path, *, page_size: int = 1000) -> None:
        self.requests: list[Request] = []
        self.page_size = page_size
        """Entries on one page of a tree."""
        self._folder = folder
        self.writes = HubWrites(
            self, folder / "uploads", is_large=lambda name: Path(name).suffix in LFS_SUFFIXES
        )
        self._repositories: dict[str, _Repository] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        assert self._server, "the server is not running"
        return f"http://{LOOPBACK}:{self._server.server_port}"

    def start(self) -> None:
        self._server = _Server((LOOPBACK, 0), _Handler, self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        assert self._server
        self._server.shutdown()
        self._server.server_close()

    def inject(self, *faults: Fault) -> None:
        with self._lock:
            self._faults += faults

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def commit(
        self, repo: str, files: Mapping[str, bytes | Path | None], *, revision: str = "main"
    ) -> str:
        """Add, change or (None) remove files at the tip of `revision`; returns the new commit."""
        repository = self._repositories.setdefault(repo, _Repository())
        parent = repository.revisions.get(revision)
        seed = f"{repo} {len(repository.commits)} {parent}"
        commit = hashlib.sha1(seed.encode()).hexdigest()
        tree = self._folder / repo / commit
        if parent:
            shutil.copytree(self._folder / repo / parent, tree)
        tree.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            elif isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
        repository.commits.append(commit)
        repository.revisions[revision] = commit
        return commit

    def sign_up(self, token: str, account: Account) -> None:
        """Who publishes with this token, and as whom."""
        self.writes.accounts[token] = account

    def gate(self, repo: str, *allowed_tokens: str) -> None:
        """Anybody sees that it is there; its files go only to the holders of these tokens."""
        self._repositories[repo].allowed_tokens = frozenset(allowed_tokens)

    def hide(self, repo: str, *allowed_tokens: str) -> None:
        """Private: to all others it is as if it were not there."""
        self.gate(repo, *allowed_tokens)
        self._repositories[repo].private = True

    def requests_for(self, glob: str) -> list[Request]:
        """Those whose path matches, in the order in which they came."""
        return [request for request in self.requests if fnmatch.fnmatch(request.path, glob)]

    def repository(self, repo: str) -> _Repository | None:
        return self._repositories.get(repo)

    def tree(self, repo: str, commit: str) -> Path:
        return self._folder / repo / commit

    def note(self, request: Request) -> Fault | None:
        """Keep a record of the request; the fault that is due with it."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times > 0 and fnmatch.fnmatch(request.path, fault.path):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def running_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub in `folder`, and the clients of this process and its children pointed at it."""
    hub = HubServer(folder / "repositories")
    hub.start()
    home = folder / "hf"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(home))
    # The clients read their environment once, when they are imported.
    import datasets
    from huggingface_hub import constants

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(home / "modules"))
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        hub.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type["_Handler"], hub: HubServer) -> None:
        super().__init__(address, handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle of an answer is nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    fault: Fault | None

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        authorization = self.headers.get("Authorization", "")
        self.token = authorization.removeprefix("Bearer ") or None
        request = Request(
            method=self.command,
            path=unquote(path),
            range=self.headers.get("Range"),
            token=self.token,
            at_s=time.monotonic(),
        )
        self.fault = self.server.hub.note(request)
        if self.fault and self.fault.status:
            self._send(self.fault.status, b'{"error":"as it was told"}', self.fault.headers)
            return
        try:
            written = self.server.hub.writes.answer(self.command, path, self.token, body)
            if written is not None:
                self._send_json(written)
            elif match := _OF_REPO.fullmatch(path):
                kind, name, verb, revision, rest = match.groups()
                repo = name if kind == "datasets" else MODELS + name
                self._api(repo, verb, unquote(revision or "main"), unquote(rest or ""), body)
            elif match := _RESOLVE.fullmatch(path):
                repo = match[2] if match[1] else MODELS + match[2]
                self._resolve(repo, unquote(match[3]), unquote(match[4]))
            elif match := _LFS.fullmatch(path):
                file = self.server.hub.tree(match[1], match[2]) / unquote(match[3])
                self._send_file(file, {"ETag": f'"{_sha256(file)}"'})
            else:
                raise RefusalError(404, "", "Not found")
        except RefusalError as refusal:
            text = json.dumps({"error": str(refusal)}).encode()
            self._send(refusal.status, text, refusal.headers)

    def _api(self, repo: str, verb: str | None, revision: str, rest: str, body: bytes) -> None:
        repository = self._visible(repo)
        if verb == "auth-check":
            self._check_gate(repo)
            self._send(200, b"OK")
            return
        commit = self._commit(repo, revision)
        tree = self.server.hub.tree(repo, commit)
        if verb in (None, "revision"):
            names = sorted(p.relative_to(tree).as_posix() for p in _files(tree))
            gated = repository.allowed_tokens is not None and not repository.private
            info = {
                "id": repo.removeprefix(MODELS),
                "sha": commit,
                "private": repository.private,
                "gated": "auto" if gated else False,
                "disabled": False,
                "tags": [],
                "siblings": [{"rfilename": name} for name in names],
            }
            self._send_json(info)
        elif verb == "tree":
            if not (tree / rest).is_dir():
                raise RefusalError(404, "EntryNotFound", f"{rest} does not exist on {revision!r}")
            self._send_tree(tree, rest)
        elif verb == "paths-info":
            paths = [tree / name for name in parse_qs(body.decode()).get("paths", [])]
            self._send_json([_entry(path, tree) for path in paths if path.exists()])
        else:
            raise RefusalError(404, "", "Not found")

    def _send_tree(self, tree: Path, below: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found = (tree / below).rglob("*") if recursive else (tree / below).iterdir()
        entries = sorted(found)
        start, size = int(query.get("cursor", ["0"])[0]), self.server.hub.page_size
        headers = {}
        if start + size < len(entries):
            at = f"{self.server.hub.url}{urlsplit(self.path).path}?recursive={recursive}"
            headers["Link"] = f'<{at}&cursor={start + size}>; rel="next"'
        page = [_entry(path, tree) for path in entries[start : start + size]]
        self._send_json(page, headers)

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        self._visible(repo)
        commit = self._commit(repo, revision)
        self._check_gate(repo)
        file = self.server.hub.tree(repo, commit) / name
        if not file.is_file():
            raise RefusalError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit}
        if file.suffix not in LFS_SUFFIXES:
            self._send_file(file, headers | {"ETag": f'"{_git_oid(file)}"'})
            return
        headers["X-Linked-ETag"] = f'"{_sha256(file)}"'
        headers["X-Linked-Size"] = str(file.stat().st_size)
        headers["Location"] = f"{self.server.hub.url}/lfs/{repo}/{commit}/{quote(name)}"
        self._send(302, b"Found. Redirecting", headers)

    def _visible(self, repo: str) -> _Repository:
        repository = self.server.hub.repository(repo)
        hidden = repository is not None and repository.private and not self._is_allowed(repository)
        if repository is None or hidden:
            raise RefusalError(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repo: str, revision: str) -> str:
        repository = self._visible(repo)
        if revision in repository.commits:
            return revision
        if revision not in repository.revisions:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository.revisions[revision]

    def _check_gate(self, repo: str) -> None:
        if not self._is_allowed(self._visible(repo)):
            message = f"Access to dataset {repo} is restricted."
            raise RefusalError(403 if self.token else 401, "GatedRepo", message)

    def _is_allowed(self, repository: _Repository) -> bool:
        return repository.allowed_tokens is None or self.token in repository.allowed_tokens

    def _send_json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(200, json.dumps(value).encode(), kind | dict(headers or {}))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, file: Path, headers: Mapping[str, str]) -> None:
        size = file.stat().st_size
        start, stop, status = 0, size, 200
        whole = self.fault is not None and self.fault.ignores_range
        if not whole and (asked := _RANGE.fullmatch(self.headers.get("Range", ""))):
            start, stop, status = int(asked[1]), min(int(asked[2] or size - 1) + 1, size), 206
            if start >= size:
                self._send(416, b"", {"Content-Range": f"bytes */{size}"})
                return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command != "HEAD":
            with file.open("rb") as source:
                source.seek(start)
                self._send_content(source, stop - start)

    def _send_content(self, source: BinaryIO, size_bytes: int) -> None:
        fault = self.fault or Fault()
        cut = fault.cut_after_bytes
        end = size_bytes if cut is None else min(cut, size_bytes)
        step = CHUNK_BYTES if fault.bytes_per_s is None else SMALL_CHUNK_BYTES
        sent = 0
        while chunk := source.read(min(step, end - sent)):
            if fault.wrong_bytes:
                chunk = bytes(byte ^ 0xFF for byte in chunk)
            self.wfile.write(chunk)
            sent += len(chunk)
            if fault.bytes_per_s:
                time.sleep(len(chunk) / fault.bytes_per_s)
        if end < size_bytes:
            self.wfile.flush()
            time.sleep(0.05)  # a reset overtakes what the client has not read yet
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True


def _files(tree: Path) -> Iterator[Path]:
    return (path for path in tree.rglob("*") if path.is_file())


def _entry(path: Path, tree: Path) -> dict[str, Any]:
    """As the Hub tells of a file or a folder in a tree."""
    name = path.relative_to(tree).as_posix()
    if path.is_dir():
        oid = hashlib.sha1(name.encode()).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": name}
    size = path.stat().st_size
    entry = {"type": "file", "oid": _git_oid(path), "size": size, "path": name}
    if path.suffix in LFS_SUFFIXES:
        entry["lfs"] = {"oid": _sha256(path), "size": size, "pointerSize": 134}
    return entry


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_oid(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
