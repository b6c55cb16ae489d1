"""A hand-tuned script: raw reads into one reused buffer, addmm_ in place in bf16, raw writes: peer_addmm.py BASE ADAPTER OUT; prints its peak memory."""
import json
import os
import resource
import sys

import torch
from safetensors import safe_open

base, adapter, out = sys.argv[1:]
source = open(os.path.join(base, "model.safetensors"), "rb", buffering=0)
length = int.from_bytes(source.read(8), "little")
header = source.read(length)
config = json.load(open(os.path.join(adapter, "adapter_config.json")))
scale = config["lora_alpha"] / config["r"]
entries = sorted(((v["data_offsets"], k, v) for k, v in json.loads(header).items() if k != "__metadata__"), key=lambda e: e[0])
buffer = torch.empty(max(e[0][1] - e[0][0] for e in entries), dtype=torch.uint8)
view = memoryview(buffer.numpy())
with safe_open(os.path.join(adapter, "adapter_model.safetensors"), "pt") as lora, open(out, "wb", buffering=0) as sink:
    names = set(lora.keys())
    sink.write(length.to_bytes(8, "little") + header)
    for (begin, end), name, info in entries:
        size = end - begin
        done = 0
        while done < size:
            done += source.readinto(view[done:size])
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if key + "A.weight" in names:
            a = lora.get_tensor(key + "A.weight").bfloat16()
            b = lora.get_tensor(key + "B.weight").bfloat16()
            buffer[:size].view(torch.bfloat16).view(info["shape"]).addmm_(b, a, alpha=scale)
        done = 0
        while done < size:
            done += sink.write(view[done:size])
print(json.dumps({"peakRssBytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
