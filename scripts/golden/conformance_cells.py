"""The two axes of the conformance matrix: architectures, and options of PEFT's LoRA as configs for each of them."""
import dataclasses

import torch

SEED = 29


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Names of one architecture's modules, as the options need them."""
    title: str
    linears: list  # suffixes of three kinds of linear layers
    ranks: dict  # rank_pattern that makes two of them uneven
    alphas: dict
    regex: str
    exclude: list
    layers: str  # layers_pattern
    embedding: str
    head: str
    saved: list  # modules_to_save
    saved_embedding: str
    conv: list  # targets with a convolution among them, or the name of one that is not there
    parameters: list
    parameter_ranks: dict
    order: dict  # patterns in which an earlier key, sorted later, must win


def pattern_order(first, second, third):
    """More than one key matches; the first in the dict's order wins. Python sorts them the same way, so that a reload agrees."""
    return {"rank_pattern": {first: 2, second: 4, third: 5}, "alpha_pattern": {first: 11, second: 3, third: 7}}


ARCHITECTURES = {
    "bert": Architecture(
        "BERT", ["query", "key", "intermediate.dense"], {"key": 2, "intermediate.dense": 4}, {"intermediate.dense": 7},
        r".*\.layer\.\d\.(attention\.self\.(query|value)|output\.dense)", ["layer.1.intermediate.dense"], "layer",
        "word_embeddings", "decoder", ["transform"], "word_embeddings", ["projection"],
        ["layer.0.attention.self.query.weight", "layer.1.output.dense.weight"], {r".*layer\.1\.output\.dense\.weight": 2},
        pattern_order(r"layer\.0\.attention\.self\.query", "query", ".*dense")),
    "gpt2": Architecture(
        "GPT-2", ["c_attn", "c_fc", "attn.c_proj"], {"c_fc": 2, "attn.c_proj": 4}, {"attn.c_proj": 7},
        r".*\.h\.\d\.(attn\.c_(attn|proj)|mlp\.c_proj)", ["h.1.mlp.c_fc"], "h",
        "wte", "lm_head", ["ln_f"], "wte", ["projection"],
        ["h.0.attn.c_attn.weight", "h.1.mlp.c_proj.weight"], {r".*h\.1\.mlp\.c_proj\.weight": 2},
        pattern_order(r".*h\.0\.attn\.c_attn", "c_attn", "c_fc")),
    "llama": Architecture(
        "Llama", ["q_proj", "k_proj", "down_proj"], {"k_proj": 2, "down_proj": 4}, {"down_proj": 7},
        r".*\.layers\.\d\.(self_attn\.[qv]_proj|mlp\.up_proj)", ["layers.1.mlp.down_proj"], "layers",
        "embed_tokens", "lm_head", ["lm_head", "model.norm"], "embed_tokens", ["projection"],
        ["layers.0.self_attn.q_proj.weight", "layers.1.mlp.down_proj.weight"], {r".*layers\.1\.mlp\.down_proj\.weight": 2},
        pattern_order(r"layers\.0\.self_attn\.q_proj", "q_proj", r"self_attn\.k_proj")),
    "moe": Architecture(
        "Mixtral (MoE)", ["q_proj", "k_proj", "o_proj"], {"k_proj": 2, "o_proj": 4}, {"o_proj": 7},
        r".*\.layers\.\d\.self_attn\.[qv]_proj", ["layers.1.self_attn.o_proj"], "layers",
        "embed_tokens", "lm_head", ["lm_head", "mlp.gate"], "embed_tokens", ["projection"],
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], {r".*layers\.1\.mlp\.experts\.down_proj": 2},
        pattern_order(r"layers\.0\.self_attn\.q_proj", "q_proj", r"self_attn\.k_proj")),
    "t5": Architecture(
        "T5", ["q", "v", "wo"], {"v": 2, "wo": 4}, {"wo": 7},
        r"(encoder|decoder)\.block\.\d\.layer\.\d\.(SelfAttention\.[qv]|DenseReluDense\.wi)", ["decoder.block.1.layer.2.DenseReluDense.wo"],
        "block", "shared", "lm_head", ["decoder.final_layer_norm"], "shared", ["projection"],
        ["encoder.block.0.layer.0.SelfAttention.q.weight", "decoder.block.1.layer.2.DenseReluDense.wo.weight"],
        {r".*decoder\.block\.1\.layer\.2\.DenseReluDense\.wo\.weight": 2},
        pattern_order(r".*block\.0\.layer\.0\.SelfAttention\.q", "SelfAttention.q", "q")),
    "vit": Architecture(
        "ViT", ["q_proj", "k_proj", "fc2"], {"k_proj": 2, "fc2": 4}, {"fc2": 7},
        r".*\.layers\.\d\.(attention\.[qv]_proj|mlp\.fc1)", ["layers.1.mlp.fc2"], "layers",
        "position_embeddings", "classifier", ["classifier"], "patch_embeddings", ["q_proj", "k_proj", "projection"],
        ["layers.0.attention.q_proj.weight", "layers.1.mlp.fc2.weight"], {r".*layers\.1\.mlp\.fc2\.weight": 2},
        pattern_order(r"layers\.0\.attention\.q_proj", "q_proj", r"attention\.k_proj")),
}


def build(name, tied=False):
    """A model of a few kB with random weights, whose embeddings are tied or not."""
    from transformers import (BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig,
                              MixtralForCausalLM, T5Config, T5ForConditionalGeneration, ViTConfig, ViTForImageClassification)
    tie = {"tie_word_embeddings": tied}
    tokens = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    llama = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
             "max_position_embeddings": 16, **tokens, **tie}
    encoder = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    t5 = T5Config(d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2, relative_attention_num_buckets=8, decoder_start_token_id=0, **tokens)
    t5.tie_word_embeddings = tied  # its constructor always says that they are tied
    makers = {
        "bert": lambda: BertForMaskedLM(BertConfig(**encoder, max_position_embeddings=16, **tokens, **tie)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=2, n_head=2, n_inner=20, n_positions=16, **tokens, **tie)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(intermediate_size=20, attention_bias=True, mlp_bias=True, **llama)),
        "moe": lambda: MixtralForCausalLM(MixtralConfig(intermediate_size=8, num_local_experts=3, num_experts_per_tok=2, **llama)),
        "t5": lambda: T5ForConditionalGeneration(t5),
        "vit": lambda: ViTForImageClassification(ViTConfig(**encoder, image_size=8, patch_size=4, num_labels=3, **tie)),
    }
    torch.manual_seed(SEED)
    model = makers[name]()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    model.name_or_path = f"tiny-{name}"
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Option:
    """A column of the matrix. `config`: Architecture → arguments of LoraConfig."""
    title: str
    config: object
    save: dict = dataclasses.field(default_factory=dict)  # of save_pretrained
    adapter: str = "default"
    dtype: torch.dtype = None  # of the adapter's file and of the base
    tied: bool = False
    prepare: str = ""  # what the script does besides


def uneven(a, **changes):
    """Three kinds of layers with three ranks and two alphas."""
    return {"r": 3, "lora_alpha": 5, "rank_pattern": a.ranks, "alpha_pattern": a.alphas, "target_modules": a.linears, **changes}


def with_embedding(a):
    """Alone where the model has none: beside others PEFT would pass over it in silence."""
    return [a.embedding] if a.embedding == "position_embeddings" else [*a.linears, a.embedding]


def of(**changes):
    return lambda a: uneven(a, **changes)


def everything(a):
    """As much at once as PEFT takes."""
    return uneven(a, use_dora=True, use_rslora=True, bias="all", modules_to_save=a.saved, exclude_modules=a.exclude,
                  layers_to_transform=[0, 1], layers_pattern=a.layers, lora_dropout=0.1)


NOT_WHOLE = {"save_embedding_layers": False}

OPTIONS = {
    "list": Option("`target_modules`: a list", of()),
    "regex": Option("`target_modules`: an expression", lambda a: {
        "r": 3, "lora_alpha": 5, "rank_pattern": {r".*\.1\..*": 2}, "target_modules": a.regex}),
    "all-linear": Option("`target_modules`: all-linear", of(target_modules="all-linear")),
    "exclude-modules": Option("`exclude_modules`", lambda a: uneven(a, exclude_modules=a.exclude)),
    "layers-to-transform": Option("`layers_to_transform`, `layers_pattern`", lambda a: uneven(
        a, layers_to_transform=[1], layers_pattern=a.layers)),
    "patterns": Option("`rank_pattern`, `alpha_pattern` where the order matters", lambda a: {
        "r": 3, "lora_alpha": 5, "target_modules": a.linears, **a.order}),
    "patterns-sorted": Option("`alpha_pattern` in an order that PEFT’s own file loses", lambda a: uneven(
        a, alpha_pattern={a.linears[0]: 11, r".*\.0\..*": 3}), prepare="order"),
    "rslora": Option("`use_rslora`", of(use_rslora=True)),
    "dora": Option("`use_dora`", of(use_dora=True)),
    "dora-rslora": Option("`use_dora` and `use_rslora`", of(use_dora=True, use_rslora=True)),
    "fan-in-fan-out": Option("`fan_in_fan_out`", of(fan_in_fan_out=True)),
    "bias-all": Option("`bias`: all", of(bias="all")),
    "bias-lora-only": Option("`bias`: lora_only", of(bias="lora_only")),
    "lora-bias": Option("`lora_bias`", of(lora_bias=True)),
    "modules-to-save": Option("`modules_to_save`", lambda a: uneven(a, modules_to_save=a.saved)),
    "token-indices": Option("`trainable_token_indices`: a list", of(trainable_token_indices=[31, 2, 17])),
    "token-indices-of": Option("`trainable_token_indices`: by module", lambda a: uneven(
        a, trainable_token_indices={a.embedding: [4, 1], a.head: [30]})),
    "embedding": Option("an embedding among the targets", lambda a: uneven(a, target_modules=with_embedding(a)), NOT_WHOLE),
    "embedding-saved": Option("the same, and the embedding is saved too", lambda a: uneven(a, target_modules=with_embedding(a))),
    "save-embeddings": Option("`save_embedding_layers`, no embedding adapted", of(), {"save_embedding_layers": True}),
    "embedding-dora": Option("`use_dora` on an embedding", lambda a: uneven(
        a, target_modules=with_embedding(a), use_dora=True), NOT_WHOLE),
    "head": Option("the output layer among the targets", lambda a: uneven(a, target_modules=[*a.linears, a.head]), NOT_WHOLE),
    "conv": Option("a convolution among the targets", lambda a: uneven(a, target_modules=a.conv)),
    "conv-dora": Option("`use_dora` on a convolution", lambda a: uneven(a, target_modules=a.conv, use_dora=True)),
    "conv-lora-bias": Option("`lora_bias` on a convolution", lambda a: uneven(a, target_modules=a.conv, lora_bias=True)),
    "target-parameters": Option("`target_parameters`", lambda a: {
        "r": 3, "lora_alpha": 5, "target_modules": [], "target_parameters": a.parameters, "rank_pattern": a.parameter_ranks}),
    "target-parameters-and-modules": Option("`target_parameters` beside `target_modules`", lambda a: uneven(
        a, target_modules=a.linears[1:2], target_parameters=a.parameters)),
    "layer-replication": Option("`layer_replication`", of(layer_replication=[[0, 2], [1, 2]])),
    "tied-embedding": Option("tied embeddings: the input’s is adapted", lambda a: uneven(
        a, target_modules=with_embedding(a)), NOT_WHOLE, tied=True),
    "tied-head": Option("tied embeddings: the output’s is adapted", lambda a: uneven(
        a, target_modules=[*a.linears, a.head]), NOT_WHOLE, tied=True),
    "tied-saved": Option("tied embeddings: the input’s in `modules_to_save`", lambda a: uneven(a, modules_to_save=[a.saved_embedding]), tied=True),
    "tied-token-indices": Option("tied embeddings: `trainable_token_indices`", of(trainable_token_indices=[31, 2, 17]), tied=True),
    "ensure-weight-tying": Option("`ensure_weight_tying`, the embedding adapted", lambda a: uneven(
        a, target_modules=with_embedding(a), ensure_weight_tying=True), NOT_WHOLE, tied=True),
    "ensure-weight-tying-saved": Option("`ensure_weight_tying`, the embedding in `modules_to_save`", lambda a: uneven(
        a, modules_to_save=[a.saved_embedding], ensure_weight_tying=True), tied=True),
    "ensure-weight-tying-tokens": Option("`ensure_weight_tying`, rows of the embedding by module", lambda a: uneven(
        a, trainable_token_indices={a.embedding: [4, 1]}, ensure_weight_tying=True), tied=True),
    "init-gaussian": Option("`init_lora_weights`: gaussian", of(init_lora_weights="gaussian")),
    "init-random-b": Option("`init_lora_weights`: false", of(init_lora_weights=False)),
    "init-orthogonal": Option("`init_lora_weights`: orthogonal", lambda a: uneven(
        a, r=4, rank_pattern={k: 2 for k in list(a.ranks)[:1]}, init_lora_weights="orthogonal")),
    "init-mica": Option("`init_lora_weights`: mica", of(init_lora_weights="mica")),
    "init-eva": Option("`init_lora_weights`: eva", of(init_lora_weights="eva", rank_pattern={}, alpha_pattern={}), prepare="eva"),
    "init-pissa": Option("`init_lora_weights`: pissa", of(init_lora_weights="pissa")),
    "init-pissa-converted": Option("the same, converted to plain LoRA", of(init_lora_weights="pissa"), prepare="convert"),
    "init-olora": Option("`init_lora_weights`: olora", of(init_lora_weights="olora")),
    "init-olora-converted": Option("the same, converted to plain LoRA", of(init_lora_weights="olora"), prepare="convert"),
    "init-loftq": Option("`init_lora_weights`: loftq", of(init_lora_weights="loftq", loftq_config={"loftq_bits": 8, "loftq_iter": 1})),
    "bf16": Option("base and adapter in bf16", of(), dtype=torch.bfloat16),
    "f16": Option("base and adapter in f16", of(), dtype=torch.float16),
    "named": Option("an adapter of another name, in a sub-folder", of(), adapter="tuned"),
    "bin": Option("`adapter_model.bin`", of(use_dora=True), {"safe_serialization": False}),
    "all-together": Option("many options together", everything),
}
