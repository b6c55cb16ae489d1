"""The Hub's routes over files in memory, on a port of this machine: as much of them as huggingface_hub asks for."""

import functools
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@functools.lru_cache(maxsize=None)
def sha256(content: bytes) -> str:
    """Once for each file: it takes seconds for a large one, and clients do not wait for long."""
    return hashlib.sha256(content).hexdigest()


def pointer(content: bytes) -> bytes:
    """What git keeps of a file in LFS."""
    digest = sha256(content)
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()


class HubServer:
    """`repositories`: id -> {commit, refs: {name: commit}, files: {path: bytes}, lfs: [paths]}."""

    def __init__(self, repositories: dict):
        self.repositories = repositories
        for repository in repositories.values():
            for path in repository.get("lfs", []):
                sha256(repository["files"][path])
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, False)

            def do_GET(self):
                hub.answer(self, True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request, with_body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(request.path).path.strip("/").split("/")]
        if len(parts) < 4:
            return self.send(request, with_body, 404, b"{}", {})
        if parts[:2] == ["api", "models"]:
            repository = self.repositories.get("/".join(parts[2:4]))
            verb, revision = (parts[4], parts[5]) if len(parts) > 5 else ("revision", "main")
        else:
            repository = self.repositories.get("/".join(parts[:2]))
            verb, revision = parts[2], parts[3]
        if repository is None:
            return self.send(request, with_body, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = repository["refs"].get(revision, revision)
        if commit != repository["commit"]:
            return self.send(request, with_body, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if verb == "revision":
            siblings = [{"rfilename": path} for path in repository["files"]]
            return self.send_json(request, with_body, {"id": "x", "sha": commit, "siblings": siblings})
        if verb == "tree":
            return self.send_json(request, with_body, [self.entry(repository, path) for path in repository["files"]])
        path = "/".join(parts[4:])
        content = repository["files"].get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self.send(request, with_body, 404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        if path in repository["lfs"]:
            headers["X-Linked-Etag"] = f'"{sha256(content)}"'
            headers["X-Linked-Size"] = str(len(content))
        self.send(request, with_body, 200, content, {**headers, "ETag": f'"{git_sha1(content)}"'})

    @staticmethod
    def entry(repository: dict, path: str) -> dict:
        content = repository["files"][path]
        entry = {"type": "file", "oid": git_sha1(content), "size": len(content), "path": path}
        if path in repository["lfs"]:
            digest, link = sha256(content), pointer(content)
            entry["oid"] = git_sha1(link)
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": len(link)}
        return entry

    def send_json(self, request, with_body: bool, value) -> None:
        self.send(request, with_body, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    @staticmethod
    def send(request, with_body: bool, status: int, body: bytes, headers: dict) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if with_body:
            request.wfile.write(body)

    def close(self) -> None:
        self.server.shutdown()


COMMIT = "a" * 40

MODEL = {
    "commit": COMMIT,
    "refs": {"main": COMMIT, "v1.0": COMMIT, "refs/pr/1": COMMIT},
    "files": {
        "config.json": b'{"model_type": "llama"}\n',
        "onnx/model.onnx": bytes(range(64)) * 5,
        "onnx/copy.onnx": bytes(range(64)) * 5,
        "README.md": b"# A model\n",
    },
    "lfs": ["onnx/model.onnx", "onnx/copy.onnx"],
}
