"""What transformers' classes call their tensors, and what they store: one JSON file a class, made from tiny models.

Used by checkpoint_names.py. Every element of a model gets a number of its own, so that a saved tensor says by its values which
parameter it comes from, which of its rows, and whether it was turned.
"""
import bisect
import collections
import contextlib
import json
import pathlib
import re
import signal
import tempfile

import torch
import transformers
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange
from transformers.models.auto import modeling_auto

LAYERS = 4  # enough that each kind of layer comes
LABELS = 7  # no other size is 7
LARGEST = 200_000_000  # parameters that fit here
MOST_TIES = 200  # more are two whole models in one, for which the table would double
SIZES = [
    (r"(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_decoder_layers|num_encoder_layers|depth|layers|"
     r"num_hidden_groups|num_blocks?)", LAYERS),
    (r"(.*_)?vocab_size(_per_layer_input)?|n_vocab|ngram_vocab_size_base", 96),
    (r"codebook_size|num_embeddings", 64),
    (r"(.*_)?hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|hidden_dim|emb_dim|width|model_dim|word_embed_proj_dim|encoder_dim|"
     r"decoder_dim|projection_dim|text_embed_dim|base_channels", 32),
    (r"(.*_)?intermediate_size|(.*_)?ffn_dim|d_ff|n_inner|ffn_hidden_size|d_inner|mlp_dim|dim_feedforward|encoder_feedforward_dim", 48),
    (r"num_attention_heads|n_heads?|num_heads|encoder_attention_heads|decoder_attention_heads|num_attn_heads", 4),
    (r"num_key_value_heads|num_kv_heads|n_kv_heads", 2),
    (r"head_dim|d_kv|attention_head_dim|d_head", 8),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts|ffn_num_experts", 4),
    (r"max_position_embeddings|n_positions|max_source_positions|max_target_positions|n_ctx|max_seq_len|max_sequence_length", 64),
]
SHRINKS = (len(SIZES), 2, 1, 0)  # how many of the sizes above are made small: less where a config does not take them all
MISSING = {"vocab_size": 96, "head_dim": 8, "num_key_value_heads": 2, "pad_token_id": 0}  # with 0: all, and these where they are None
# What a type needs beside that.
OVERRIDES = {
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "emu3": {"vocabulary_map": {"<image>": 3}},
    "emu3_text_model": {},
    "DbrxAttentionConfig": {"rope_theta": 10000.0},
    "Qwen3OmniMoeTalkerCodePredictorConfig": {"tie_word_embeddings": False},  # it has no embeddings to tie
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2},
    "mimi": {"upsample_groups": 4},
    "perceiver": {"num_cross_attention_heads": 1},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64, "indexer_compress_ratio": 4},
    "hiera": {"decoder_hidden_size": 32, "decoder_depth": 1, "decoder_num_heads": 4},
    "sapiens2_head": {"upsample_out_channels": [8, 8], "upsample_kernel_sizes": [4, 4], "conv_out_channels": [8], "conv_kernel_sizes": [1]},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 4},
    "zamba": {"layers_block_type": ["mamba", "mamba", "hybrid", "hybrid"]},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_state": 8,
                         "layer_types": ["mamba", "attention", "mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "ernie4_5_vl_moe": {"moe_num_experts": [4, 4]},
    "ernie4_5_vl_moe_text": {"moe_num_experts": [4, 4], "head_dim": 128, "moe_intermediate_size": [48, 24]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "cohere_compass_text": {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 48},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2"},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"] * 2},
    "neomme": {"layer_types": ["full_attention"] * 4},
    "autoformer": {"prediction_length": 4, "context_length": 8},
    "informer": {"prediction_length": 4, "context_length": 8},
    "time_series_transformer": {"prediction_length": 4, "context_length": 8},
    "reformer": {"is_decoder": True},
    "beit": {"out_indices": [0, 1, 2, 3]},
}
_ASSISTANT = {"text_config": {"num_hidden_layers": LAYERS, "num_kv_shared_layers": LAYERS, "hidden_size_per_layer_input": 0,
                              "vocab_size_per_layer_input": 0}}
_TIMM = {"architecture": "vit_pe_core_large_patch14_336", "model_args": {
    "embed_dim": 64, "depth": 2, "img_size": [56, 56], "global_pool": "", "use_post_transformer_norm": False}}
# What the config of a type cannot be made, or made small, without.
STARTS = {
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "t5gemma": {"is_encoder_decoder": False},
    "timm_backbone": {"backbone": "resnet18"},
    "perception_lm": {"vision_config": {**_TIMM, "model_type": "timm_wrapper"}},
    "gemma3n": {"vision_config": {"architecture": "resnet18"}},
    "pe_video": {"video_config": {"vision_config": _TIMM}},
    "pe_video_encoder": {"vision_config": _TIMM},
    "pe_audio_video_encoder": {"video_config": {"vision_config": _TIMM}},
    **{name: {"intraclass_block_config": collections.defaultdict(lambda: [1, 1, 0])} for name in ("pp_ocrv5_server_det", "pp_ocrv6_medium_det")},
}
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "attention_types", "block_types", "hybrid_override_pattern")


def class_names():
    """Name of each class of the auto mappings → its models' types."""
    result = {}
    for name, mapping in vars(modeling_auto).items():
        if name.startswith("MODEL_") and name.endswith("_NAMES"):
            for model_type, classes in mapping.items():
                for own in [classes] if isinstance(classes, str) else classes:
                    result.setdefault(own, set()).add(model_type)
    return result


def parts(config, path=""):
    """The config and those inside it, by their way."""
    yield path, config
    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from parts(value, f"{path}.{key}" if path else key)


def put(config, key, value):
    with contextlib.suppress(Exception):
        setattr(config, key, value)


def shrink(config, count):
    is_filled, count = count == 0, count or len(SIZES)
    for _, part in parts(config):
        for key, value in MISSING.items() if is_filled else ():
            if getattr(part, key, 0) is None:
                put(part, key, value)
        for key, value in list(vars(part).items()):
            if isinstance(value, tuple):  # config.json has lists
                put(part, key, list(value))
            if isinstance(value, list) and key in KINDS:
                put(part, key, value[:getattr(part, "num_hidden_layers", LAYERS)])
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            small = next((size for pattern, size in SIZES[:count] if re.fullmatch(pattern, key)), value)
            if small < value:
                put(part, key, small)
            elif count > 1 and value >= 96 and re.search(r"token_(id|index)$|_idx$", key):
                put(part, key, 3)
        for key in KINDS:
            value = getattr(part, key, None)
            if isinstance(value, list):
                put(part, key, value[:getattr(part, "num_hidden_layers", LAYERS)])


def labels_of(cls):
    """Answers have two, a start and an end."""
    return 2 if cls.__name__.endswith("ForQuestionAnswering") else LABELS


def tiny(cls, count, is_tied):
    starts = STARTS.get(cls.config_class.model_type, {}) if cls.__name__ != "T5GemmaModel" else {}
    config = cls.config_class(**starts)
    shrink(config, count)
    for _, part in parts(config):
        put(part, "tie_word_embeddings", is_tied)
        for key, value in (OVERRIDES.get(type(part).__name__) or OVERRIDES.get(part.model_type, {})).items():
            put(part, key, value)
        type(part).validate = lambda config: None  # sizes that are small need not make sense together
    put(config, "num_labels", labels_of(cls))
    return cls(config)


def tie_defaults(cls):
    """Of each config: what holds where config.json says nothing, and whether its false counts."""
    result = {path: [getattr(part, "tie_word_embeddings", None) is True, True] for path, part in parts(cls.config_class())}
    with contextlib.suppress(Exception):
        result[""][1] = cls.config_class(tie_word_embeddings=False).tie_word_embeddings is False
    return result


def ties(model):
    """[target, source, way of the config that says whether] by transformers' own _tied_weights_keys."""
    ways = {id(part): path for path, part in parts(model.config)}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PreTrainedModel):
            before = f"{prefix}." if prefix else ""
            for target, source in module.get_expanded_tied_weights_keys(all_submodels=False).items():
                yield [before + target, before + source, ways.get(id(module.config))]


class Slow(Exception):
    pass


@contextlib.contextmanager
def limit(seconds):
    """Of the processor's time: the result is the same on a busy machine."""
    def stop(*_):
        raise Slow(f"took more than {seconds} s")
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def attempts(run, result, key):
    for count in SHRINKS:
        try:
            with limit(120):
                return run(count)
        except Exception as error:  # of any library that a model is built from
            result.setdefault(key, " ".join(f"{type(error).__name__}: {error}".split())[:160])
    return None


def describe_class(cls):
    result = {"class": cls.__name__, "type": cls.config_class.model_type, "prefix": cls.base_model_prefix}

    def outline(count):
        with torch.device("meta"):
            model = tiny(cls, count, True)
        own = model.state_dict()
        conversions = get_model_conversion_mapping(model, add_legacy=False)
        return {"ties": list(ties(model)), "defaults": tie_defaults(cls), "params": list(own), "isConverted": len(conversions) > 0,
                "isPrefixed": any(isinstance(own, PrefixChange) for own in conversions),
                "labels": [key for key, value in own.items() if value.dim() > 0 and value.shape[0] == labels_of(cls)]}

    found = attempts(outline, result, "error")
    if found is None:
        return result
    if len(found["ties"]) > MOST_TIES:
        return result | {"error": f"ties {len(found['ties'])} tensors"}
    result.pop("error", None)
    result |= found
    if not result["isConverted"]:
        return result

    def pair(count, is_prefixed=False):
        with torch.device("meta"):
            size = sum(p.numel() for p in tiny(cls, count, False).parameters())
        if size > LARGEST:
            raise MemoryError(f"{size} parameters")
        model = tiny(cls, count, False)
        if is_prefixed:  # as after loading a checkpoint whose names have a part more
            model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
        return pairs(model)

    result["pairs"] = attempts(pair, result, "pairError")
    if result["isPrefixed"]:
        result["prefixedPairs"] = attempts(lambda count: pair(count, True), result, "pairError")
    return result


@torch.no_grad()
def pairs(model):
    """[stored tensor, parameter, how it holds it]."""
    size = sum(value.numel() for value in model.state_dict().values())
    dtype = torch.float32 if size < 2**24 else torch.float64
    model.to(dtype)
    spans, seen, at = [], set(), 1
    for key, value in model.state_dict().items():
        if not value.is_floating_point() or value.numel() == 0 or value.data_ptr() in seen:
            continue
        seen.add(value.data_ptr())
        value.copy_(torch.arange(at, at + value.numel(), dtype=dtype).reshape(value.shape))
        spans.append((at, key, list(value.shape), value.numel()))
        at += value.numel()
    starts = torch.tensor([start for start, *_ in spans], dtype=torch.float64)
    result = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
            with safe_open(file, "pt") as stored:
                for name in stored.keys():
                    tensor = stored.get_tensor(name).double()
                    if tensor.numel() == 0 or not stored.get_tensor(name).is_floating_point():
                        continue
                    owner = torch.searchsorted(starts, tensor.flatten(), right=True) - 1
                    for i in torch.unique(owner).tolist():
                        start, parameter, shape, count = spans[i]
                        result.append([name, parameter, place(tensor - start, (owner == i).reshape(tensor.shape), shape, count)])
    return result


def same(a, b):
    return list(a.shape) == list(b.shape) and torch.equal(a, b)


def place(values, own, shape, count):
    """How a stored tensor holds a parameter: `values` are the elements' numbers in it, where `own`."""
    whole = torch.arange(count, dtype=torch.float64).reshape(shape)
    if not own.all():
        found = own.nonzero()
        box = tuple(slice(low, high) for low, high in zip(found.min(0).values.tolist(), (found.max(0).values + 1).tolist()))
        rows = [box[0].start, box[0].stop - box[0].start, values.shape[0]]
        return ["part", *rows] if same(values[box], whole) else ["other"]
    if same(values, whole):
        return ["same"]
    if values.dim() > 1 and same(values, whole.transpose(-1, -2)):
        return ["turned"]
    parts_of = [(None, whole)] if values.dim() == len(shape) else []
    if values.dim() == len(shape) - 1:
        expert = int(values.min().item()) // (count // shape[0])
        parts_of = [(expert, whole[expert])]
    for expert, part in parts_of:
        for is_turned in (False, True):
            if is_turned and part.dim() < 2:
                continue
            seen = part.transpose(-1, -2) if is_turned else part
            rows = values.shape[0]
            if list(seen.shape[1:]) != list(values.shape[1:]) or rows > seen.shape[0]:
                continue
            first = bisect.bisect_left(seen.reshape(seen.shape[0], -1)[:, 0].tolist(), values.reshape(rows, -1)[0, 0].item())
            if same(seen[first:first + rows], values):
                return ["rows", expert, first, rows, seen.shape[0], is_turned]
    return ["other"]


def describe_all(folder, only=()):
    """Writes what is not in the folder yet."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(only or class_names()):
        cls, file = getattr(transformers, name, None), folder / f"{name}.json"
        if cls is None or file.exists():
            continue
        try:
            if not hasattr(cls, "config_class"):
                continue
            result = describe_class(cls)
        except ImportError as error:
            result = {"class": name, "error": " ".join(str(error).split())[:200]}
        file.write_text(json.dumps(result), encoding="utf8")
