"""huggingface_hub downloads what `lowrank push` sent, and PEFT opens it.

    python scripts/golden/check_push.py ADAPTER
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hub_server import COMMIT, HubServer

ROOT = Path(__file__).resolve().parents[2]
PUSH = ROOT / "scripts/golden/push.mjs"

with tempfile.TemporaryDirectory() as scratch:
    sent = Path(scratch) / "sent"
    subprocess.run(["node", PUSH, Path(sys.argv[1]).resolve(), sent], check=True, cwd=ROOT)
    files = {path.name: path.read_bytes() for path in sent.iterdir()}
    large = [name for name in files if name.endswith(".safetensors")]
    hub = HubServer({"me/adapter": {"commit": COMMIT, "refs": {"main": COMMIT}, "files": files, "lfs": large}})
    os.environ.update(HF_HOME=scratch, HF_ENDPOINT=hub.endpoint)

    from huggingface_hub import snapshot_download
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder = Path(snapshot_download("me/adapter"))
    assert {path.name for path in folder.iterdir()} == set(files), list(folder.iterdir())
    base = AutoModelForCausalLM.from_pretrained(ROOT / "models/union-3m")
    model = PeftModel.from_pretrained(base, str(folder))
    stored = load_file(folder / "adapter_model.safetensors")
    loaded = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    assert len(loaded) == len(stored) > 0, (len(loaded), len(stored))
    print(f"{len(files)} files, {len(stored)} tensors: read by huggingface_hub and PEFT")
    hub.close()
