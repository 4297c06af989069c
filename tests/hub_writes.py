"""The write side of the Hub on loopback, as huggingface_hub speaks it when it publishes a model.

`whoami-v2`, `repos/create`, `validate-yaml`, `preupload`, git LFS's batch, upload and verify, and
`commit` in lines of JSON. Offered Xet, it takes the basic transfer, as a Hub without Xet does.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MODELS = "models/"
"""Before `owner/name` of a model repository; data sets go by `owner/name` alone."""
LARGE_BYTES = 10 << 20
GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"

_UPLOAD = re.compile(r"/lfs-upload/([0-9a-f]{64})")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_OF_MODEL = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)")


class RefusalError(Exception):
    """Ends a request: what the Hub says instead of what was asked for."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


@dataclass(frozen=True, kw_only=True)
class Account:
    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    def may_write(self, repo: str) -> bool:
        return self.role == "write" and repo.partition("/")[0] in (self.name, *self.orgs)


class HubWrites:
    """`hub` is the HubServer whose repositories are written to; uploads are kept in `folder`."""

    def __init__(self, hub: Any, folder: Path, *, is_large: Callable[[str], bool]) -> None:
        self.accounts: dict[str, Account] = {}
        """By token."""
        self._hub = hub
        self._folder = folder
        self._is_large = is_large

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> Any | None:
        """What is answered, to be sent as JSON; None for what is no request of this side."""
        if method == "PUT" and (match := _UPLOAD.fullmatch(path)):
            return self._keep(match[1], body)
        if path == "/api/whoami-v2":
            return self._tell_who(self._account(token))
        if method != "POST":
            return None
        if path == "/api/validate-yaml":
            return _validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(token, json.loads(body))
        if path == "/lfs-verify":
            return self._verify(json.loads(body))
        if match := _BATCH.fullmatch(path):
            self._check(token, match[1])
            return self._batch(json.loads(body))
        if match := _OF_MODEL.fullmatch(path):
            self._check(token, match[1])
            verb = self._preupload if match[2] == "preupload" else self._commit
            return verb(match[1], match[3], body)
        return None

    def _account(self, token: str | None) -> Account:
        account = self.accounts.get(token or "")
        if account is None:
            raise RefusalError(401, "", "Invalid username or password.")
        return account

    def _check(self, token: str | None, repo: str) -> None:
        may_write = self._account(token).may_write(repo)
        if not may_write:
            raise RefusalError(403, "", "You don't have the rights to write to this repository")
        if self._hub.repository(MODELS + repo) is None:
            raise RefusalError(404, "RepoNotFound", "Repository not found")

    def _tell_who(self, account: Account) -> dict[str, Any]:
        return {
            "type": "user",
            "name": account.name,
            "orgs": [{"type": "org", "name": name} for name in account.orgs],
            "auth": {"type": "access_token", "accessToken": {"role": account.role}},
        }

    def _create(self, token: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
        account = self._account(token)
        repo = f"{wanted['organization'] or account.name}/{wanted['name']}"
        if not account.may_write(repo):
            raise RefusalError(403, "", "You don't have the rights to create a model there")
        if self._hub.repository(MODELS + repo) is not None:
            raise RefusalError(409, "", "You already created this model repo")
        self._hub.commit(MODELS + repo, {".gitattributes": GIT_ATTRIBUTES})
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self._hub.hide(MODELS + repo, token)
        return {"url": f"{self._hub.url}/{repo}", "name": repo}

    def _preupload(self, repo: str, revision: str, body: bytes) -> dict[str, Any]:
        tree = self._tree(repo, revision)
        answers = []
        for file in json.loads(body)["files"]:
            name, path = file["path"], tree / file["path"]
            is_large = self._is_large(name) or file["size"] > LARGE_BYTES
            oid = _oid(path, is_large=is_large) if path.is_file() else None
            mode = "lfs" if is_large else "regular"
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def _batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        assert "basic" in wanted["transfers"]
        objects = []
        for entry in wanted["objects"]:
            found = {"oid": entry["oid"], "size": entry["size"]}
            if not (self._folder / entry["oid"]).exists():
                upload = {"href": f"{self._hub.url}/lfs-upload/{entry['oid']}", "header": {}}
                verify = {"href": f"{self._hub.url}/lfs-verify", "header": {}}
                found["actions"] = {"upload": upload, "verify": verify}
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def _keep(self, oid: str, body: bytes) -> dict[str, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusalError(400, "", "The content is not what it was announced as")
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / oid).write_bytes(body)
        return {}

    def _verify(self, wanted: dict[str, Any]) -> dict[str, Any]:
        kept = self._folder / wanted["oid"]
        if not kept.exists() or kept.stat().st_size != wanted["size"]:
            raise RefusalError(404, "", "The object was not uploaded")
        return {}

    def _commit(self, repo: str, revision: str, body: bytes) -> dict[str, Any]:
        files: dict[str, Any] = {}
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                tip = self._hub.repository(MODELS + repo).revisions[revision]
                if value.get("parentCommit") not in (None, tip):
                    raise RefusalError(412, "", "A commit has happened since. Please refresh")
            elif key == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                kept = self._folder / value["oid"]
                if not kept.exists():
                    raise RefusalError(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = kept
            else:
                raise RefusalError(400, "", f"{key} is nothing that is committed here")
        commit = self._hub.commit(MODELS + repo, files, revision=revision)
        url = f"{self._hub.url}/{repo}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}

    def _tree(self, repo: str, revision: str) -> Path:
        commit = self._hub.repository(MODELS + repo).revisions[revision]
        tree: Path = self._hub.tree(MODELS + repo, commit)
        return tree


def _validate(content: str) -> dict[str, Any]:
    """The metadata between the first two lines of dashes."""
    parts = content.split("---\n")
    if len(parts) < 3 or parts[0]:
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]}
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise RefusalError(400, "", str(error)) from error
    if not isinstance(metadata, dict):
        raise RefusalError(400, "", "the metadata is no mapping")
    return {"errors": [], "warnings": []}


def _oid(path: Path, *, is_large: bool) -> str:
    content = path.read_bytes()
    if is_large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
