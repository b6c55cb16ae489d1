"""What Python's huggingface_hub makes of a small model in its cache, with links and without: tests/golden/hub-cache.json."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hub_server import MODEL, HubServer

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "hub-cache.json"

LOAD = """
from huggingface_hub import hf_hub_download, snapshot_download
snapshot_download("org/model", allow_patterns=["config.json", "onnx/*"])
hf_hub_download("org/model", "README.md", revision="refs/pr/1")
try:
    hf_hub_download("org/model", "missing.json")
except Exception as error:
    assert "Entry" in type(error).__name__, error
"""


def describe(root: Path) -> dict:
    """path -> the link's target, or the content; locks and the marks of files that do not exist are Python's own."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if ".locks" in name or path.is_dir():
            continue
        if path.is_symlink():
            found[name] = {"link": os.readlink(path)}
        else:
            found[name] = {"content": path.read_bytes().decode("latin-1")}
    return found


def make(hub: HubServer, **variables: str) -> dict:
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HF_HOME": home, "HF_ENDPOINT": hub.endpoint, **variables}
        subprocess.run([sys.executable, "-c", LOAD], env=environment, check=True)
        return describe(Path(home) / "hub")


if __name__ == "__main__":
    import huggingface_hub

    hub = HubServer({"org/model": MODEL})
    golden = {
        "huggingface_hub": huggingface_hub.__version__,
        "links": make(hub),
        "files": make(hub, HF_HUB_DISABLE_SYMLINKS="1"),
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    hub.close()
