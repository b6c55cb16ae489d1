"""Hybrid models as several exporters write them: what tests/hybrids/table.slow.test.ts measures for the table of docs/graphs.md.

    hybrids.py WORK [FAMILY …] [--exporters NAME …] [--dtypes fp32 q4 …]
    hybrids.py --golden [FAMILY …]     # tests/golden/hybrids: the smallest of some families

WORK/FAMILY gets the tiny random base as `save_pretrained` writes it, an adapter on all its projections with random A and B, and PEFT's numbers in
float64: logits, the gradients of four batches, and the losses of five steps of AdamW. WORK/FAMILY/EXPORTER is the model as an exporter writes it, or
`refused.txt` has the exporter's error. Needs requirements.txt and mobius-onnx 0.1.0.
"""
import argparse
import contextlib
import importlib
import json
import pathlib
import shutil
import subprocess
import sys
import traceback

import torch

import packed
from common import ADAMW, GOLDEN, UNION, adamw, adapt, call, fresh, gradients, loss_of, peft_keys, save_adapter, save_tensors, trainable, versions, write_json

SEED, STEPS, RANK, RATE = 41, 5, 2, 1e-3
# No layer has as many outputs as there are tokens: genai's builder would take it for the head.
SPECIAL = {"vocab_size": 131, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 512}
MLP = ["gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LENGTHS = {"short": [7, 7], "150 tokens": [150], "200 tokens": [200, 200], "unequal": [131, 64, 9, 65]}


# ---------------------------------------------------------------- the models in PyTorch

def qwen3_5():
    from transformers import Qwen3_5TextConfig
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return Qwen3_5TextConfig(
        **SPECIAL, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention", "full_attention"], rope_parameters=rope,
        linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=12, linear_num_key_heads=2, linear_num_value_heads=4,
        tie_word_embeddings=False)


def qwen3_next():
    from transformers import Qwen3NextConfig
    return Qwen3NextConfig(
        **SPECIAL, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention", "full_attention"], partial_rotary_factor=0.5,
        linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=12, linear_num_key_heads=2, linear_num_value_heads=4,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=24, tie_word_embeddings=False)


def olmo_hybrid():
    from transformers import OlmoHybridConfig
    return OlmoHybridConfig(
        **SPECIAL, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
        layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention", "full_attention"],
        linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=12, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_allow_neg_eigval=True, tie_word_embeddings=False)


def lfm2():
    from transformers import Lfm2Config
    return Lfm2Config(
        **SPECIAL, hidden_size=64, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, conv_L_cache=3,
        layer_types=["conv", "conv", "full_attention", "conv", "full_attention"], block_auto_adjust_ff_dim=False, tie_word_embeddings=True)


def granite_h():
    """mobius writes no embedding_multiplier, logits_scaling and attention_multiplier, and another order of groups than PyTorch."""
    from transformers import GraniteMoeHybridConfig
    return GraniteMoeHybridConfig(
        **SPECIAL, hidden_size=32, intermediate_size=48, shared_intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["mamba", "mamba", "attention", "mamba", "attention"], num_local_experts=4, num_experts_per_tok=2,
        mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_d_conv=4, mamba_expand=2, mamba_chunk_size=64,
        position_embedding_type="nope", residual_multiplier=0.5, attention_multiplier=8 ** -0.5,
        tie_word_embeddings=True)


def granite_dense():
    from transformers import GraniteMoeHybridConfig
    return GraniteMoeHybridConfig(
        **SPECIAL, hidden_size=64, intermediate_size=48, shared_intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["attention"] * 3, num_local_experts=0, num_experts_per_tok=0, mamba_n_heads=8, position_embedding_type="rope",
        embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.25, tie_word_embeddings=True)


def nemotron_h():
    from transformers import NemotronHConfig
    return NemotronHConfig(
        **SPECIAL, hidden_size=32, intermediate_size=48, layers_block_type=["mamba", "mlp", "mamba", "attention", "mlp", "mamba", "attention"],
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, mamba_num_heads=8, mamba_head_dim=8, n_groups=2, ssm_state_size=8, conv_kernel=4,
        chunk_size=64, use_mamba_kernels=False, tie_word_embeddings=False)


def falcon_h1():
    from transformers import FalconH1Config
    return FalconH1Config(
        **SPECIAL, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        mamba_n_heads=8, mamba_d_head=8, mamba_d_ssm=64, mamba_expand=2, mamba_n_groups=2, mamba_d_state=8, mamba_d_conv=4, mamba_chunk_size=64,
        tie_word_embeddings=False)


def bamba():
    from transformers import BambaConfig
    return BambaConfig(
        **SPECIAL, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        attn_layer_indices=[2, 4], mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_d_conv=4, mamba_expand=2,
        mamba_chunk_size=64, tie_word_embeddings=False)


def gemma3n():
    from transformers import Gemma3nTextConfig
    kinds = ["sliding_attention"] * (1 if SMALL else 2) + ["full_attention"]
    return Gemma3nTextConfig(
        **SPECIAL, hidden_size=32, intermediate_size=48, num_hidden_layers=2 * len(kinds), num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        layer_types=kinds * 2, sliding_window=32, num_kv_shared_layers=len(kinds), vocab_size_per_layer_input=131, hidden_size_per_layer_input=8,
        laurel_rank=4, activation_sparsity_pattern=[0.0] * 2 * len(kinds))


def gemma4():
    from transformers import Gemma4TextConfig
    return Gemma4TextConfig(
        **SPECIAL, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        global_head_dim=32, layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2, sliding_window=32, num_kv_shared_layers=3,
        vocab_size_per_layer_input=131, hidden_size_per_layer_input=8, final_logit_softcapping=30.0)


def llama_like(name, **more):
    def make():
        import transformers
        return getattr(transformers, name)(**{
            **SPECIAL, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "tie_word_embeddings": False, **more})
    return make


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}


def gpt_oss():
    from transformers import GptOssConfig
    rope = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 128}
    return GptOssConfig(
        **SPECIAL, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_local_experts=4, num_experts_per_tok=2, sliding_window=32, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=rope, tie_word_embeddings=False)


def lfm2_moe():
    from transformers import Lfm2MoeConfig
    return Lfm2MoeConfig(
        **SPECIAL, **EXPERTS, hidden_size=64, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, conv_L_cache=3,
        layer_types=["conv", "conv", "full_attention", "conv"], num_dense_layers=1, use_expert_bias=True, tie_word_embeddings=True)


def granite_moe():
    from transformers import GraniteMoeConfig
    return GraniteMoeConfig(
        **SPECIAL, hidden_size=32, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        num_experts_per_tok=2, embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.25,
        tie_word_embeddings=True)


def modernbert_decoder():
    from transformers import ModernBertDecoderConfig
    return ModernBertDecoderConfig(
        **SPECIAL, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, local_attention=32,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"], tie_word_embeddings=True)


MAMBA = ["in_proj", "out_proj"]
SHARED_MLP = ["shared_mlp.input_linear", "shared_mlp.output_linear"]
FAMILIES = {  # name: (config, modules that the adapter changes); PEFT takes names of an MLP for experts, too
    "qwen3_5": (qwen3_5, ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj", *ATTENTION, *MLP]),
    "qwen3_next": (qwen3_next, ["out_proj", *ATTENTION]),
    "olmo_hybrid": (olmo_hybrid, [*ATTENTION, "a_proj", "b_proj", "g_proj", *MLP]),
    "lfm2": (lfm2, ["in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "w1", "w2", "w3"]),
    "granite_h": (granite_h, [*MAMBA, *ATTENTION, *SHARED_MLP]),
    "granite_dense": (granite_dense, [*ATTENTION, *SHARED_MLP]),
    "nemotron_h": (nemotron_h, ["in_proj", *ATTENTION, "up_proj", "down_proj"]),
    "falcon_h1": (falcon_h1, ["in_proj", *ATTENTION, *MLP]),
    "bamba": (bamba, [*MAMBA, *ATTENTION, *MLP]),
    "gemma3n": (gemma3n, [*ATTENTION, *MLP, "per_layer_input_gate", "per_layer_projection"]),
    "gemma4": (gemma4, [*ATTENTION, *MLP, "per_layer_input_gate", "per_layer_projection"]),
    "smollm3": (llama_like("SmolLM3Config", num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0]), [*ATTENTION, *MLP]),
    "ministral3": (llama_like("Ministral3Config"), [*ATTENTION, *MLP]),
    "ernie4_5": (llama_like("Ernie4_5Config"), [*ATTENTION, *MLP]),
    "hunyuan": (llama_like("HunYuanDenseV1Config"), [*ATTENTION, *MLP]),
    "exaone4": (llama_like("Exaone4Config", num_hidden_layers=4, sliding_window=32, sliding_window_pattern="LLLG",
                           layer_types=["sliding_attention"] * 3 + ["full_attention"]), [*ATTENTION, *MLP]),
    "qwen3_moe": (llama_like("Qwen3MoeConfig", **EXPERTS), ATTENTION),
    "qwen3_moe_experts": (llama_like("Qwen3MoeConfig", **EXPERTS), ["q_proj"]),
    "gpt_oss": (gpt_oss, ATTENTION),
    "gpt_oss_experts": (gpt_oss, ["q_proj"]),
    "lfm2_moe": (lfm2_moe, ["in_proj", "out_proj", "q_proj", "k_proj", "v_proj"]),
    "lfm2_moe_experts": (lfm2_moe, ["q_proj"]),
    "granite_moe": (granite_moe, ATTENTION),
    "granite_moe_experts": (granite_moe, ["q_proj"]),
    "modernbert_decoder": (modernbert_decoder, ["q_proj", "k_proj", "v_proj", "Wo", "Wi"]),
    "olmo3": (llama_like("Olmo3Config", num_hidden_layers=4, sliding_window=32), [*ATTENTION, *MLP]),
}


# Adapted parameters, beside the modules.
PARAMETERS = {
    "qwen3_moe_experts": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "gpt_oss_experts": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "lfm2_moe_experts": ["experts.gate_up_proj", "experts.down_proj"],
    "granite_moe_experts": ["experts.gate_up_proj", "experts.down_proj"],
}

GOLDEN_EXPORTERS = {
    "qwen3_5": "mobius", "granite_h": "mobius", "olmo_hybrid": "dynamo", "qwen3_moe_experts": "mobius", "lfm2_moe_experts": "genai",
    "gpt_oss_experts": "dynamo", "lfm2": "liquid", "lfm2_moe": "genai-qmoe", "gemma3n": "dynamo-parts",
}
GOLDEN_DTYPES = {"qwen3_5": ["fp32", "q4f16"], "lfm2": ["q4"], "lfm2_moe": ["q4"]}
SMALL = False  # --golden: one layer of each kind, and one batch


def build(family, dtype=torch.float32):
    """Random matrices, made in the order of the parameters' names and scaled so that each layer matters; vectors near their initial values."""
    from transformers import AutoModelForCausalLM
    config = FAMILIES[family][0]()
    if SMALL and family != "gemma3n":
        kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ["full_attention"]))
        config.layer_types, config.num_hidden_layers = kinds, len(kinds)
    # Norms of small values would make more of the rounding of float32 than of the model.
    config.rms_norm_eps = 1e-2
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.add_(0.1 * noise)
            elif "embed" in name or "lm_head" in name:
                p.copy_(0.15 * noise)
            else:
                p.copy_(noise / (p[0].numel() if p.dim() == 3 and "conv" in name else p.shape[-1]) ** 0.5)
            if family == "olmo_hybrid" and name.endswith("linear_attn.v_proj.weight"):
                p.mul_(0.03)  # the norm of its outputs adds 1e-5, whatever rms_norm_eps says
    return model.eval().to(dtype)


# ---------------------------------------------------------------- forms: how weights are stored

def on_grid(weight, scale_type):
    """The values of ONNX Runtime's symmetric 4 bits in blocks of 32: quantizing them once more changes nothing."""
    rows = torch.nn.functional.pad(weight, (0, -weight.shape[-1] % 32)).unflatten(-1, (-1, 32))
    largest = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).to(scale_type).float()
    steps = torch.where(scale == 0, 0, (rows / scale).round().clamp(-8, 7))
    return (steps * scale).flatten(-2)[..., : weight.shape[-1]]


def stored(family, dtype):
    """The base with the values that a form stores: `fp32`, `fp16`, `q4` or `q4f16`."""
    model = build(family)
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_convolution = p.dim() == 3 and "conv" in name
            if dtype.startswith("q4") and p.dim() >= 2 and not is_convolution:
                p.copy_(on_grid(p, torch.float16 if dtype == "q4f16" or "experts" in name else torch.float32))  # QMoE has scales in float16
            if dtype == "fp16" or (dtype == "q4f16" and (p.dim() < 2 or is_convolution or "embed" in name)):
                p.copy_(p.half().float())
    return model


def quantize(folder):
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    path = folder / "model.onnx"
    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=True)
    quantizer.process()
    for file in folder.iterdir():
        file.unlink()
    onnx.save(quantizer.model.model, path)


def save_source(model, folder):
    model.save_pretrained(fresh(folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):  # genai's builder asks for one
        shutil.copyfile(UNION / name, folder / name)


def save_qwen3_5(text, folder):
    """genai's builder takes the whole model, of texts and pictures, and writes the graph of its texts."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
    vision = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=32, num_position_embeddings=16)
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text.config.to_dict(), vision_config=vision, tie_word_embeddings=False))
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    save_source(whole, folder)


# ---------------------------------------------------------------- exporters: (family, source folder, output folder)

def run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-4000:])


GENAI = """
import runpy, sys
source, out, precision, cache, provider, *options = sys.argv[1:]
extra = ['--extra_options', *options] if options else []
sys.argv = ['builder', '-i', source, '-o', out, '-p', precision, '-e', provider, '-c', cache, *extra]
runpy.run_module('onnxruntime_genai.models.builder', run_name='__main__')
"""
MOBIUS = """
import sys
from mobius import build
from transformers import AutoConfig
load = AutoConfig.from_pretrained

def named_as_before(*args, **kwargs):  # transformers 5 renames the types of layers, which mobius 0.1 looks for
    config = load(*args, **kwargs)
    if config.model_type == "bamba":
        kinds = ["attention" if i in config.attn_layer_indices else "mamba" for i in range(config.num_hidden_layers)]
        type(config).layers_block_type = property(lambda _: kinds)
    if config.model_type == "granitemoehybrid":
        config.layer_types = ["attention" if kind == "full_attention" else "mamba" for kind in config.layer_types]
    return config

AutoConfig.from_pretrained = named_as_before
build(sys.argv[1], dtype=sys.argv[3]).save(sys.argv[2])
"""


def genai(family, source, out, dtype, provider="cpu", *options):
    if family == "qwen3_5":
        save_qwen3_5(stored(family, dtype), source.parent / "whole")
        source = source.parent / "whole"
    run(GENAI, source, out, "fp16" if dtype.endswith("16") else "fp32", source.parent / "cache", provider, *options)
    if dtype.startswith("q4"):
        quantize(out)


def genai_qmoe(family, source, out, dtype):
    """In 4 bits by the builder itself: QMoE for the experts."""
    if dtype != "q4":
        raise RuntimeError("QMoE is made for --dtypes q4")
    run(GENAI, source, out, "int4", source.parent / "cache", "cpu", "accuracy_level=1")


def genai_cuda(family, source, out, dtype):
    """With GatedDeltaNet, which has a kernel on CUDA alone."""
    genai(family, source, out, dtype, "cuda", "linear_attn_op=gated_delta_net")


def liquid(family, source, out, dtype):
    """LFM2 as Liquid AI and onnx-community publish it, made from onnxruntime-genai's graph: past_conv.N holds the last inputs of a convolution, which
    is written as Concat, Conv and Slice; RotaryEmbedding reads position_ids; in q4, embeddings and head share one table (GatherBlockQuantized)."""
    import onnx
    from onnx import helper, numpy_helper
    import numpy
    from exporters import SEPARATE_ROTARY
    if family != "lfm2":
        raise RuntimeError("this layout is LFM2's")
    options = ["int4", source.parent / "cache", "cpu", "shared_embeddings=true", "accuracy_level=1"] if dtype == "q4" else ["fp32", source.parent / "cache", "cpu"]
    run(SEPARATE_ROTARY + GENAI, source, out, *options)
    model = onnx.load(out / "model.onnx")
    graph, nodes = model.graph, []
    width = FAMILIES[family][0]().conv_L_cache

    def constant(name, values):
        graph.initializer.append(numpy_helper.from_array(numpy.array(values, numpy.int64), name))
        return name

    axis, minus, last, end = (constant(f"liquid/{name}", values) for name, values in (
        ("axis", [2]), ("minus", [-1]), ("last", [-width]), ("end", [2 ** 63 - 1])))
    for node in graph.node:
        if node.op_type != "CausalConvWithState":
            nodes.append(node)
            continue
        (x, weight, _, past), (y, present) = node.input, node.output
        base, (past_conv, present_conv) = node.name.rsplit("/", 1)[0], (f"{kind}_conv.{past.split('.')[1]}" for kind in ("past", "present"))
        for value, old, new in [*((v, past, past_conv) for v in graph.input), *((v, present, present_conv) for v in graph.output)]:
            if value.name == old:
                value.name = new
                value.type.tensor_type.shape.dim[2].dim_value = width

        def add(kind, inputs, name, output=None, **attributes):
            output = output or f"{base}/{name}/output_0"
            nodes.append(helper.make_node(kind, inputs, [output], name=f"{base}/{name}", **attributes))
            return output

        read = add("Concat", [past_conv, x], "Concat", axis=2)
        whole = add("Conv", [read, weight], "conv/Conv", kernel_shape=[width], group=numpy_helper.to_array(next(
            i for i in graph.initializer if i.name == weight)).shape[0])
        tokens = add("Gather", [add("Shape", [x], "Shape"), axis], "seq_len", axis=0)
        add("Slice", [whole, add("Mul", [tokens, minus], "Mul_3"), end, axis], "Slice", y)
        add("Slice", [read, last, end, axis], "Slice_1", present_conv)
    del graph.node[:]
    graph.node.extend(nodes)
    for file in out.iterdir():
        file.unlink()
    onnx.save(model, out / "model.onnx")


def mobius(family, source, out, dtype):
    run(MOBIUS, source, fresh(out), "f16" if dtype.endswith("16") else "f32")
    if dtype.startswith("q4"):
        quantize(out)


def fused_delta_rule(query, key, value, g, beta, use_qk_l2norm_in_kernel=True, **_):
    """The recurrence as one node, ONNX Runtime's LinearAttention. Queries, keys and values are (batch, tokens, heads, size)."""
    def normalized(x):
        return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
    batch, heads, keys, values = key.shape[0], value.shape[2], key.shape[3], value.shape[3]
    past = torch.zeros(batch, heads, keys, values)
    attributes = {"q_num_heads": key.shape[2], "kv_num_heads": heads, "update_rule": "gated_delta", "scale": keys ** -0.5}
    inputs = [normalized(query).flatten(2), normalized(key).flatten(2), value.flatten(2), past, g, beta]
    output, _ = torch.onnx.ops.symbolic_multi_out("com.microsoft::LinearAttention", inputs, attributes, dtypes=[1, 1], version=1,
                                                  shapes=[inputs[2].shape, past.shape])
    return output.unflatten(2, (heads, values)), None


def dynamo(family, source, out, dtype):
    """torch.onnx.export's newer exporter, without a cache."""
    from transformers import AutoModelForCausalLM
    if family in RECURRENT:
        importlib.import_module(f"transformers.models.{family}.modeling_{family}").torch_chunk_gated_delta_rule = fused_delta_rule
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager", experts_implementation="batched_mm", dtype=torch.float32).eval()

    class NoCache(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.lm_head = model.model, model.lm_head
            self.forward_of = model.forward

        def forward(self, input_ids, attention_mask):
            return self.forward_of(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    ids = torch.randint(3, 128, (2, 70))
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    path = fresh(out) / "model.onnx"
    torch.onnx.export(NoCache(), (ids, torch.ones_like(ids)), path, dynamo=True, external_data=False, input_names=["input_ids", "attention_mask"],
                      output_names=["logits"], verbose=False, dynamic_shapes={"input_ids": axes, "attention_mask": axes})
    keep_scopes(path)


def keep_scopes(path):
    """Removes what the exporter tells of nodes, except the modules that they are in."""
    import onnx
    exported = onnx.load(path)
    for node in exported.graph.node:
        kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(exported, path)


def dynamo_parts(family, source, out, dtype):
    """The files of onnx-community for Gemma 3n and Gemma 4, without those of pictures and sounds: embed_tokens also gives the inputs of each layer,
    which the decoder reads. Only layers with keys and values of their own have a cache."""
    from transformers import AutoModelForCausalLM, DynamicCache
    if not family.startswith("gemma"):
        raise RuntimeError("these files are those of Gemma 3n and Gemma 4")
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager", dtype=torch.float32).eval()
    config, whole, text = model.config, model.forward, model.model
    kinds = config.layer_types[: config.num_hidden_layers - config.num_kv_shared_layers]
    attentions = [layer.self_attn for layer in text.layers[: len(kinds)]]
    fresh(out)

    def embed(input_ids):
        vectors = text.embed_tokens(input_ids)
        return vectors, text.get_per_layer_inputs(input_ids, *([vectors] if family == "gemma4" else []))

    def decode(inputs_embeds, per_layer_inputs, attention_mask, position_ids, *past):
        cache = DynamicCache()
        for i in range(len(kinds)):
            cache.update(past[2 * i], past[2 * i + 1], i)
        logits = whole(inputs_embeds=inputs_embeds, per_layer_inputs=per_layer_inputs, attention_mask=attention_mask, position_ids=position_ids,
                       cache=cache, use_cache=True).logits
        return logits, *(state for layer in cache.layers for state in (layer.keys, layer.values))

    def write(name, forward, inputs, outputs, axes):
        model.forward = forward
        shapes = [{axis: torch.export.Dim.DYNAMIC for axis in axes(key)} for key in inputs]
        fixed = sum(not key.startswith("past") for key in inputs)
        torch.onnx.export(model, tuple(inputs.values()), out / f"{name}.onnx", dynamo=True, external_data=False, input_names=list(inputs),
                          output_names=outputs, dynamic_shapes=(*shapes[:fixed], *([tuple(shapes[fixed:])] if shapes[fixed:] else [])), verbose=False)
        keep_scopes(out / f"{name}.onnx")

    ids = torch.randint(3, 128, (2, 7))
    write("embed_tokens", embed, {"input_ids": ids}, ["inputs_embeds", "per_layer_inputs"], lambda name: (0, 1))
    with torch.no_grad():
        vectors, per_layer = embed(ids)
    caches = [f"{i}.{part}" for i in range(len(kinds)) for part in ("key", "value")]
    past = {f"past_key_values.{c}": torch.randn(2, attentions[int(c[0])].k_proj.out_features // attentions[int(c[0])].head_dim, 5, attentions[int(c[0])].head_dim) for c in caches}
    write("decoder_model_merged", decode, {
        "inputs_embeds": vectors, "per_layer_inputs": per_layer, "attention_mask": torch.ones(2, 12, dtype=torch.int64),
        "position_ids": torch.arange(5, 12).repeat(2, 1), **past}, ["logits", *(f"present.{c}" for c in caches)],
        lambda name: (0, 2) if name in past else (0, 1))
    config = json.loads((source / "config.json").read_text())
    outer = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(out / "config.json", {**outer, "model_type": family, "text_config": config})


# Families whose loop over chunks PyTorch cannot export for texts of any length.
RECURRENT = {"olmo_hybrid", "qwen3_5", "qwen3_next"}
EXPORTERS = {"genai": genai, "genai-cuda": genai_cuda, "genai-qmoe": genai_qmoe, "liquid": liquid, "mobius": mobius, "dynamo": dynamo, "dynamo-parts": dynamo_parts}


def named(exporter, dtype):
    return exporter if dtype == "fp32" else f"{exporter}-{dtype}"


def export(family, exporter, dtype, family_folder):
    """config.json and onnx/ as on the Hub, or the exporter's error."""
    name = named(exporter, dtype)
    folder = fresh(family_folder / name)
    exported = family_folder / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    try:
        source = family_folder / (f"source-{dtype}" if dtype.startswith("q4") else "source")
        if not source.exists():
            save_source(stored(family, dtype), source)
        EXPORTERS[exporter](family, source, exported, dtype)
        (folder / "onnx").mkdir()
        own = exported / "config.json"
        shutil.copyfile(own if exporter == "dynamo-parts" else family_folder / "source" / "config.json", folder / "config.json")
        for file in sorted(exported.iterdir()):
            if ".onnx" in file.name:
                shutil.move(file, folder / "onnx" / file.name)
        shutil.rmtree(exported)
        print(family, name, "made", flush=True)
    except Exception as error:
        (folder / "refused.txt").write_text(traceback.format_exc() if str(error) == "" else str(error))
        print(family, name, "refused:", str(error).strip().splitlines()[-1][:200] if str(error).strip() else repr(error), flush=True)


# ---------------------------------------------------------------- numbers

def batches():
    generator = torch.Generator().manual_seed(SEED)
    made = {}
    for name, lengths in ({"unequal": [70, 9]} if SMALL else LENGTHS).items():
        width = max(lengths)
        rows = [torch.randint(3, 128, (n,), generator=generator).tolist() for n in lengths]
        made[name] = {"inputIds": [row + [2] * (width - len(row)) for row in rows], "attentionMask": [[1] * n + [0] * (width - n) for n in lengths],
                      "labels": [row + [-100] * (width - len(row)) for row in rows]}
    return made


def adapted(family, dtype=torch.float32, form="fp32"):
    model = adapt(stored(family, form), SEED, 0.1, name=f"tiny-{family}", r=RANK, lora_alpha=2 * RANK, target_modules=FAMILIES[family][1],
                  target_parameters=PARAMETERS.get(family))
    return model.to(dtype)


@torch.no_grad()
def logits(model, batch):
    return call(model, input_ids=torch.tensor(batch["inputIds"]), attention_mask=torch.tensor(batch["attentionMask"])).logits


@contextlib.contextmanager
def no_epsilon(family):
    """Exporters write the norm of queries and keys without the 1e-6 that PyTorch adds to the sum of squares."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    saved, module.l2norm = module.l2norm, lambda x, dim=-1, eps=0: x * torch.rsqrt((x * x).sum(dim=dim, keepdim=True) + 1e-30)
    try:
        yield
    finally:
        module.l2norm = saved


WITHOUT_EPSILON = {("qwen3_5", "genai"), ("qwen3_5", "genai-cuda"), ("qwen3_5", "mobius"), ("qwen3_next", "mobius")}


def numbers(family, folder, form="fp32"):
    given = batches()
    wide = adapted(family, torch.float64, form)
    tensors = {}
    for name, batch in given.items():
        tensors |= {f"{name}/{key}": g for key, g in peft_keys(gradients(wide, batch)).items()}
        tensors |= {f"{name}/base": logits(stored(family, form).double(), batch), f"{name}/adapted": logits(wide, batch)}
    save_tensors(folder / "numbers.safetensors", tensors)
    loss = {name: loss_of(wide, batch).item() for name, batch in given.items()}
    narrow = adapted(family, form=form)
    deviation = {"loss": 0, "logits": 0, "gradient": 0}
    for name, batch in given.items():
        truth, other = gradients(wide, batch), gradients(narrow, batch)
        wanted, got = logits(wide, batch), logits(narrow, batch)
        errors = {"loss": abs(loss[name] - loss_of(narrow, batch).item()), "logits": ((got - wanted).abs().max() / wanted.abs().max()).item(),
                  "gradient": max(((other[k] - g).norm() / g.norm()).item() for k, g in truth.items())}
        deviation = {key: max(value, errors[key]) for key, value in deviation.items()}
    order = list(given.values())
    losses, _ = adamw(wide, order, STEPS, lr=RATE)
    write_json(folder / "numbers.json", {"versions": versions("torch", "transformers", "peft"), "batches": given, "loss": loss, "adamw": {**ADAMW, "lr": RATE}, "adamwLosses": losses, "float32Deviation": deviation})
    print(family, "numbers", loss, "float32:", deviation, len(trainable(wide)), "tensors", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path, nargs="?")
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--exporters", nargs="*", default=list(EXPORTERS))
    parser.add_argument("--dtypes", nargs="*", default=["fp32"])
    parser.add_argument("--golden", action="store_true")
    args = parser.parse_args()
    if args.golden:
        global SMALL
        families = list(GOLDEN_EXPORTERS) if args.work is None else [args.work.name, *args.families]
        SMALL, args.work, args.families = True, GOLDEN / "hybrids", families
    for family in args.families or list(FAMILIES):
        exporters = [GOLDEN_EXPORTERS[family]] if args.golden else args.exporters
        make(family, args.work / family, exporters, GOLDEN_DTYPES.get(family, ["fp32"]) if args.golden else args.dtypes)
    if args.golden:
        packed.pack(GOLDEN / "hybrids", "hybrids")


def make(family, folder, exporters, dtypes):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "numbers.json").exists():
        save_source(build(family), folder / "source")
        save_adapter(adapted(family), fresh(folder / "adapter"))
        numbers(family, folder)
    if not SMALL and not (folder / "merged").exists():
        adapted(family).merge_and_unload().save_pretrained(fresh(folder / "merged"))
    for exporter in exporters:
        for dtype in dtypes:
            export(family, exporter, dtype, folder)
            is_other = (family, exporter) in WITHOUT_EPSILON
            made = (folder / named(exporter, dtype) / "onnx").exists()
            if made and (is_other or dtype != "fp32"):
                with no_epsilon(family) if is_other else contextlib.nullcontext():
                    numbers(family, folder / named(exporter, dtype), dtype)
    if SMALL:  # what nothing reads
        for source in folder.glob("source*"):
            shutil.rmtree(source)
        if dtypes == ["q4"] or all((family, exporter) in WITHOUT_EPSILON for exporter in exporters):
            for file in folder.glob("numbers.*"):
                file.unlink()


if __name__ == "__main__":
    main()
