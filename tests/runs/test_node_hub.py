"""A rented node that trains on a gated data set of the Hub, with the token of who launched it."""

import random
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tests.hub_server import running_hub
from tests.parquet_files import write_parquet
from tests.runs.node import Node
from training.layout import RunRecord

pytestmark = pytest.mark.slow

REPO = "owner/gated"
TOKEN = "hf_notForAnyoneToSee"


def test_a_node_reads_gated_data_and_writes_the_token_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home := tmp_path / "home").mkdir()
    with running_hub(tmp_path / "hub", monkeypatch) as hub:
        chosen = random.Random(7)
        texts = [" ".join(chosen.choices(["the", "cat", "sat"], k=200)) for _ in range(200)]
        parquet = write_parquet(tmp_path / "0.parquet", texts)
        commit = hub.commit(REPO, {"data/train-00000-of-00001.parquet": parquet})
        hub.gate(REPO, TOKEN)
        node = Node(home)
        record = msgspec.json.decode(node.env["RUN_RECORD"], type=RunRecord)
        data = replace(record.recipe.data, source=f"hub:{REPO}", revision=commit, path="")
        record = replace(record, recipe=replace(record.recipe, data=data))
        node.env |= {
            "RUN_RECORD": msgspec.json.encode(record).decode(),
            "HF_TOKEN": TOKEN,
            "HF_ENDPOINT": hub.url,
        }
        try:
            said = node.live()
            assert node.status.state == "succeeded", said
        finally:
            node.clean_up()

        files = [request for request in hub.requests if "/resolve/" in request.path]
        assert files
        assert {request.token for request in files} == {TOKEN}
    written = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.name == "events.jsonl" for path in written)
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in said
