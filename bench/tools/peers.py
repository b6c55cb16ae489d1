"""The same work in PEFT. Each command prints one JSON document.

    peers.py peft ADAPTER …         PEFT's add_weighted_adapter (svd, rank 16) of adapters for one layer of TinyLlama
"""
import json
import sys
import time

def peft(*adapters):
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=1, num_attention_heads=32, num_key_value_heads=4, vocab_size=8)
    model = PeftModel.from_pretrained(LlamaForCausalLM(config), adapters[0], adapter_name="0")
    for i, path in enumerate(adapters[1:], 1):
        model.load_adapter(path, adapter_name=str(i))
    start = time.perf_counter()
    model.add_weighted_adapter([str(i) for i in range(len(adapters))], [1.0] * len(adapters), "all", combination_type="svd", svd_rank=16)
    return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    print(json.dumps({"peft": peft}[command](*arguments)))
