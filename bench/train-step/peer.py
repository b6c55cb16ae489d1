#!/usr/bin/env python3
"""The peer of the training benchmark: makes random Llama, Gemma and ViT models and trains LoRA on them with PEFT and PyTorch.

    peer.py make  NAME DIR            config.json, model.safetensors and onnx/model.onnx (TorchScript exporter) with seeded random weights
                                      NAME: a decoder of SHAPES or QWEN3_5, or vit-small
    peer.py serve DIR ATTENTION ...   trains on request: one JSON command a line on stdin, one JSON answer a line on stdout

Versions: requirements.txt.
"""
import argparse, json, os, statistics, sys, time

import torch

SHAPES = {  # name: hidden, layers, heads, key/value heads, intermediate, vocabulary
    "llama-6x384": (384, 6, 12, 4, 1024, 8192),
    "llama-135m": (576, 30, 9, 3, 1536, 49152),
    "llama-600m": (1024, 28, 16, 8, 3072, 151936),
    "llama-1100m": (2048, 22, 32, 4, 5632, 32000),
    "gemma3-270m": (640, 18, 4, 1, 2048, 262144),
}
QWEN3_5 = {"qwen3_5-800m": (24, 248320), "qwen3_5-4-layers": (4, 8192)}  # layers, vocabulary; made by mobius-onnx
LINEAR_ATTENTION = ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", *LINEAR_ATTENTION]
ENCODER_TARGETS = r".*encoder.*(query|key|value|dense)"


def make_vit(folder):
    """As large as ViT-S/16."""
    from transformers import ViTConfig, ViTForImageClassification
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, image_size=224, patch_size=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2, attn_implementation="eager")).eval()
    model.save_pretrained(folder)
    with open(os.path.join(folder, "preprocessor_config.json"), "w") as file:
        json.dump({"do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                   "rescale_factor": 1 / 255, "size": {"height": 224, "width": 224}, "resample": 2}, file)

    class Logits(ViTForImageClassification):
        """No wrapper: its name would stand in front of the names of the modules."""

        def forward(self, pixel_values):
            return super().forward(pixel_values=pixel_values).logits

    exported = Logits(model.config).eval()
    exported.load_state_dict(model.state_dict())
    os.makedirs(os.path.join(folder, "onnx"), exist_ok=True)
    torch.onnx.export(exported, (torch.randn(2, 3, 224, 224),), os.path.join(folder, "onnx", "model.onnx"),
                      input_names=["pixel_values"], output_names=["logits"], opset_version=17, dynamo=False,
                      dynamic_axes={"pixel_values": {0: "batch_size"}, "logits": {0: "batch_size"}})


def make_qwen3_5(layers, vocabulary, folder):
    """Qwen3.5-0.8B's texts, with the graph by mobius-onnx: three layers of linear attention, then one of attention."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
    import mobius
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10], "mrope_interleaved": True}
    Qwen3_5ForCausalLM(Qwen3_5TextConfig(
        hidden_size=1024, intermediate_size=3584, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=2, head_dim=256,
        vocab_size=vocabulary, layer_types=(["linear_attention"] * 3 + ["full_attention"]) * (layers // 4), rope_parameters=rope,
        linear_conv_kernel_dim=4, linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=16,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2)).save_pretrained(folder)
    mobius.build(folder, dtype="f32").save(os.path.join(folder, "onnx"))


def make(name, folder):
    if name == "vit-small":
        return make_vit(folder)
    if name in QWEN3_5:
        return make_qwen3_5(*QWEN3_5[name], folder)
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
    hidden, layers, heads, kv_heads, intermediate, vocabulary = SHAPES[name]
    torch.manual_seed(0)
    is_gemma = name.startswith("gemma3")
    Model, Config = (Gemma3ForCausalLM, Gemma3TextConfig) if is_gemma else (LlamaForCausalLM, LlamaConfig)
    own = {"head_dim": 256, "query_pre_attn_scalar": 256} if is_gemma else {}
    model = Model(Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, vocab_size=vocabulary, max_position_embeddings=2048, tie_word_embeddings=name != "llama-1100m",
        attn_implementation="eager", bos_token_id=0, eos_token_id=1, pad_token_id=2, use_cache=False, **own)).eval()
    model.save_pretrained(folder)

    class Logits(torch.nn.Module):
        """Ids and mask in, logits out; the causal mask is written out, since exporting transformers' own needs tracing tricks."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            length = input_ids.shape[1]
            positions = torch.arange(length)
            visible = (positions[None, :] <= positions[:, None])[None, None] & attention_mask[:, None, None, :].bool()
            mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
            mask = {"full_attention": mask, "sliding_attention": mask} if is_gemma else mask
            return self.model(input_ids=input_ids, attention_mask=mask, position_ids=positions[None], use_cache=False).logits

    os.makedirs(os.path.join(folder, "onnx"), exist_ok=True)
    example = torch.randint(3, vocabulary, (2, 7))
    axes = {0: "batch_size", 1: "sequence_length"}
    torch.onnx.export(Logits(), (example, torch.ones_like(example)), os.path.join(folder, "onnx", "model.onnx"),
                      input_names=["input_ids", "attention_mask"], output_names=["logits"], opset_version=17, dynamo=False,
                      dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": axes})


def memory():
    with open("/proc/self/status") as status:
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status if line.startswith(("VmHWM", "Rss"))}
    return {"peakRssBytes": sizes["VmHWM"], "anonymous": sizes["RssAnon"], "mapped": sizes["RssFile"]}


def sgemm_rate():
    """GFLOP/s of a 1024 x 4096 x 4096 product, best of five: tells a real BLAS from a reference one."""
    a, b = torch.randn(1024, 4096), torch.randn(4096, 4096)
    best = min(timed(lambda: a @ b) for _ in range(5))
    return 2 * 1024 * 4096 * 4096 / best / 1e9


def products(model, rows, clock):
    """Milliseconds that the products by the frozen weights take, forward and backward, best of three."""
    linears = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lora_" not in name]
    given = {m.in_features: torch.randn(rows, m.in_features) for m in linears}

    @torch.no_grad()
    def all_products():
        for m in linears:
            given[m.in_features] @ m.weight.T @ m.weight

    return min(timed(all_products, clock) for _ in range(3)) * 1000


def timed(call, clock=time.perf_counter):
    start = clock()
    call()
    return clock() - start


def model_of(kind, folder, attention, rank):
    """The base with LoRA on all linears but the output layer, and its head trained whole."""
    import transformers
    from peft import LoraConfig, get_peft_model
    given = {"attn_implementation": attention, "dtype": torch.float32}
    lora = {"r": rank, "lora_alpha": 2 * rank}
    if kind == "causal-lm":
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, **given)
        base.config.use_cache = False
        return get_peft_model(base, LoraConfig(**lora, target_modules=TARGETS, task_type="CAUSAL_LM"))
    given["hidden_dropout_prob"] = given["attention_probs_dropout_prob"] = 0.0
    if kind == "text-classification":
        base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **given)
        config = LoraConfig(**lora, target_modules=ENCODER_TARGETS, modules_to_save=["pooler", "classifier"], task_type="SEQ_CLS")
    else:
        base = transformers.AutoModelForImageClassification.from_pretrained(folder, **given)
        names = [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and n != "classifier"]
        config = LoraConfig(**lora, target_modules=names, modules_to_save=["classifier"])
    return get_peft_model(base, config)


def serve(folder, attention, rank, batch, sequence, threads, kind, cpu, checkpoints):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = model_of(kind, folder, attention, rank)
    model.train()
    if checkpoints:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    given = None
    clock = time.process_time if cpu else time.perf_counter

    def step():
        loss = model(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "sgemm":
            answer = {"gflops": sgemm_rate(), "version": torch.__version__}
        elif command["do"] == "products":
            answer = {"millis": products(model, batch * sequence, clock)}
        elif command["do"] == "batch":
            ids = torch.tensor(command["inputIds"]).reshape(batch, sequence)
            labels = torch.arange(batch) % 2
            if kind == "image-classification":
                size = model.config.image_size
                given = {"pixel_values": torch.randn(batch, 3, size, size), "labels": labels}
            else:
                given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids if kind == "causal-lm" else labels}
            answer = {}
        elif command["do"] == "step":
            losses = []
            millis = [1000 * timed(lambda: losses.append(step()), clock) for _ in range(command.get("steps", 1))]
            answer = {"millis": statistics.median(millis), "loss": losses[-1], **memory()}
        print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    make_parser = actions.add_parser("make")
    make_parser.add_argument("name", choices=[*sorted(SHAPES), *QWEN3_5, "vit-small"])
    make_parser.add_argument("folder")
    serve_parser = actions.add_parser("serve")
    serve_parser.add_argument("folder")
    serve_parser.add_argument("attention", choices=("eager", "sdpa"))
    serve_parser.add_argument("--kind", default="causal-lm", choices=("causal-lm", "text-classification", "image-classification"))
    serve_parser.add_argument("--cpu", action="store_true", help="time of the processor, not of the clock")
    serve_parser.add_argument("--checkpoints", action="store_true", help="gradient checkpointing: less memory, more time")
    for name, default in (("rank", 8), ("batch", 8), ("sequence", 128), ("threads", 2)):
        serve_parser.add_argument("--" + name, type=int, default=default)
    args = parser.parse_args()
    if args.action == "make":
        make(args.name, args.folder)
    else:
        serve(args.folder, args.attention, args.rank, args.batch, args.sequence, args.threads, args.kind, args.cpu, args.checkpoints)


if __name__ == "__main__":
    main()
