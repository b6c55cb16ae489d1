"""Loads offline, with Python's huggingface_hub, what lowrank wrote into the Hub's cache from a local server: every file, by branch
and by commit, with links and without; and downloads on into the same cache."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hub_server import COMMIT, MODEL, HubServer

ROOT = Path(__file__).resolve().parents[2]

CHECK = """
import sys
from pathlib import Path
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache
from hub_server import COMMIT, MODEL
for path in ("config.json", "onnx/model.onnx", "onnx/copy.onnx"):
    for revision in (None, COMMIT):
        file = hf_hub_download("org/model", path, revision=revision, local_files_only=True)
        assert Path(file).read_bytes() == MODEL["files"][path], path
    assert try_to_load_from_cache("org/model", path) == hf_hub_download("org/model", path, local_files_only=True)
report = scan_cache_dir()
assert not report.warnings, report.warnings
(model,) = report.repos
assert model.repo_id == "org/model" and set(model.refs) == {"main"}, model
assert {file.file_name for file in next(iter(model.revisions)).files} == {"config.json", "model.onnx", "copy.onnx"}
"""

ONLINE = """
from pathlib import Path
from huggingface_hub import snapshot_download
from hub_server import MODEL
folder = Path(snapshot_download("org/model"))
for path, content in MODEL["files"].items():
    assert (folder / path).read_bytes() == content, path
"""

if __name__ == "__main__":
    import huggingface_hub

    for variables in ({}, {"HF_HUB_DISABLE_SYMLINKS": "1"}):
        hub = HubServer({"org/model": MODEL})
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "HF_HOME": home, "HF_ENDPOINT": hub.endpoint, **variables}
            environment["PYTHONPATH"] = str(Path(__file__).parent)
            files = ["config.json", "onnx/model.onnx", "onnx/copy.onnx"]
            subprocess.run(["node", ROOT / "scripts" / "golden" / "reverse_hub.mjs", *files], env=environment, check=True)
            offline = {**environment, "HF_HUB_OFFLINE": "1"}
            subprocess.run([sys.executable, "-c", CHECK], env=offline, check=True)
            subprocess.run([sys.executable, "-c", ONLINE], env=environment, check=True)
            # And back: what Python added opens here.
            subprocess.run(["node", ROOT / "scripts" / "golden" / "reverse_hub.mjs", "README.md"], env=offline, check=True)
        hub.close()
        print(f"huggingface_hub {huggingface_hub.__version__} reads the cache that lowrank wrote, {variables or 'with links'}")
