"""A hub on this machine, for what it must answer about data sets.

Run as a program it serves nothing: it is the other side, a user's process. It reads a list of
tasks and prints, for each, the problems found and what loading it gave.
"""

import hashlib
import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

REVISION = "a" * 40
CLASSES = ["bad", "so", "good"]
CARD = {
    "dataset_info": {
        "config_name": "small",
        "features": [
            {"name": "label", "dtype": {"class_label": {"names": dict(enumerate(CLASSES))}}},
            {"name": "text", "dtype": "string"},
        ],
        "splits": [
            {"name": "train", "num_bytes": 1, "num_examples": 60},
            {"name": "test", "num_bytes": 1, "num_examples": 30},
        ],
    },
    "configs": [
        {
            "config_name": "small",
            "data_files": [
                {"split": "train", "path": "small/train-*"},
                {"split": "test", "path": "small/test-*"},
            ],
        }
    ],
}


def rows(count: int, name: str) -> bytes:
    """Parquet with one blank text and one withheld label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["" if i == 4 else f"{name} text {i}" for i in range(count)]
    labels = [-1 if i == 8 else i % 3 for i in range(count)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"label": labels, "text": texts}), buffer)
    return buffer.getvalue()


def files_of(repo: str) -> dict[str, bytes] | None:
    """Content of a repository by path; None if there is no such repository."""
    import yaml

    if repo == "owner/OnlyCode":
        return {"OnlyCode.py": b"raise SystemExit('this must not run')"}
    if repo not in ("owner/MyReviews", "owner/Gated"):
        return None
    return {
        "README.md": f"---\n{yaml.safe_dump(CARD)}---\n".encode(),
        "small/train-0.parquet": rows(60, "train"),
        "small/test-0.parquet": rows(30, "test"),
    }


class Hub(BaseHTTPRequestHandler):
    """The few calls that the hub's libraries make to find and read a data set."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def answer(self, content: object, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        found = re.fullmatch(r"/api/datasets/(\w+/\w+)/paths-info/\w+", self.path)
        files = files_of(found[1]) if found else None
        if files is None:
            return self.answer({}, 404)
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        return self.answer([entry for path in paths for entry in entries(files, path, exact=True)])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        path = unquote(urlparse(self.path).path)
        found = re.fullmatch(r"/(?:api/)?datasets/(\w+/\w+)/(\w+)/(\w+)/?(.*)", path)
        if found is None:
            return self.answer({}, 404)
        repo, call, revision, rest = found.groups()
        files = files_of(repo)
        if files is None:
            return self.answer({}, 401, X_Error_Code="RepoNotFound")
        if revision != REVISION:
            return self.answer({}, 404, X_Error_Code="RevisionNotFound")
        if call == "revision":
            return self.answer(about(repo, files))
        if repo == "owner/Gated":
            return self.answer({}, 401, X_Error_Code="GatedRepo")
        if call == "tree":
            return self.answer(entries(files, rest, exact=False))
        if rest not in files:
            return self.answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=REVISION)
        tag = hashlib.sha1(files[rest]).hexdigest()
        return self.answer(files[rest], ETag=f'"{tag}"', X_Repo_Commit=REVISION)


def about(repo: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "id": repo,
        "sha": REVISION,
        "gated": "manual" if repo == "owner/Gated" else False,
        "private": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": name} for name in files],
        "cardData": CARD if "README.md" in files else None,
    }


def entries(files: dict[str, bytes], path: str, *, exact: bool) -> list[dict[str, Any]]:
    """Files and folders: the one at the path, or those right within it."""
    names = {*files, *(name.rpartition("/")[0] for name in files)} - {""}
    wanted = [n for n in names if n == path or (not exact and n.rpartition("/")[0] == path)]
    return [
        {"type": "file", "path": name, "oid": "b" * 40, "size": len(files[name])}
        if name in files
        else {"type": "directory", "path": name, "oid": "b" * 40, "size": 0}
        for name in sorted(wanted)
    ]


@contextmanager
def serving() -> Iterator[tuple[str, list[str]]]:
    """Address of a running hub, and the paths that were asked of it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    seen: list[str] = []
    server.seen = seen  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def visit(task: dict[str, Any], cache: Path) -> dict[str, Any]:
    """What a user's process gets."""
    from lorasweep.errors import LorasweepError
    from lorasweep.tasks import sources

    gave: dict[str, Any] = {"problems": sources.problems(task)}
    try:
        data = sources.load(task, cache)
    except LorasweepError as error:
        return {**gave, "error": str(error)}
    return {
        **gave,
        "labels": data.labels,
        "provenance": data.provenance,
        "texts": dict(zip(data.train.ids, data.train.texts, strict=True)),
        "eval_ids": data.eval.ids,
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps([visit(task, Path(sys.argv[1])) for task in asked]))
