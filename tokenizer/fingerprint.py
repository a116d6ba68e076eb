"""What an input is, cheaply: name, size and time of change of its files, not their content."""

from __future__ import annotations

import hashlib
import json

from tokenizer.documents import Input


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def input_fingerprint(source: Input) -> str:
    """Changes when a file of the input is added, removed, renamed or written to."""
    files = hashlib.sha256()
    for path in source.files():
        status = path.stat()
        files.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest([source.name, source.kind, files.hexdigest()])
