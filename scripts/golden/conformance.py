"""The conformance matrix: every architecture × every option of PEFT's LoRA, as PEFT saves, computes and merges it, or refuses it.

    conformance.py [--out tests/golden/conformance] [--archs NAME …] [--options NAME …]

Per architecture: base/ and tied/, models of a few kB. Per cell: adapter/, the folder as PEFT writes it; expected.json, what PEFT
counts after loading it again, or the message with which it refuses; tensors.safetensors, inputs and outputs of adapted modules and
the tensors in which the merged model differs from its base, computed in float64 where PEFT can, and rounded to float32.
"""
import argparse
import contextlib
import copy
import json
import os
import pathlib
import re
import sys
import tempfile
import warnings

if os.environ.get("PYTHONHASHSEED") != "0":  # messages print sets
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})

import torch

import packed
from common import GOLDEN, all_double, fill_b, fresh, save_tensors, versions, write_json
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "generate"))
from transformers_classes import pairs

from conformance_cells import ARCHITECTURES, OPTIONS, SEED, build

REPLICATED = "it adds the changes of all copies of a layer to the one weight that they share"


class Refused(Exception):
    """PEFT does not take the config; the message is its own."""


def stored_names(model):
    """Name of a tensor → that of the first one which shares its memory: the one on disk."""
    first = {}
    return {key: first.setdefault(value.data_ptr(), key) for key, value in model.state_dict().items()}


def said(error):
    """An error on one line."""
    text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
    return re.sub(r"\btmp\w+", "NAME", " ".join(text.split()))[:400]


def save_base(name, tied, folder):
    """As transformers writes it; names.json has what it calls otherwise than the model: stored tensor → [parameter, expert, first row]."""
    fresh(folder)
    model = build(name, tied)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    moved = {}
    for stored, parameter, how in pairs(build(name, tied)):
        if stored == parameter:
            continue
        kind, expert, first = [*how, None, 0][:3]
        assert kind == "same" or (kind == "rows" and not how[5]), how
        moved[stored] = [parameter, expert, first]
    if moved:
        write_json(folder / "names.json", moved)

# ---------------------------------------------------------------- making adapters

def adapt(base, option, config):
    """PEFT's own adapter on the model; what it refuses is Refused."""
    from peft import LoraConfig, get_peft_model, initialize_lora_eva_weights
    torch.manual_seed(SEED)
    try:
        adapted = get_peft_model(base, LoraConfig(**config), adapter_name=option.adapter)
        if option.prepare == "eva":
            inputs = {} if base.main_input_name == "input_ids" else {"prepare_model_inputs_fn": None, "prepare_layer_inputs_fn": None}
            initialize_lora_eva_weights(adapted, batches(base), adapter_name=option.adapter, show_progress_bar=False, **inputs)
        return adapted
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, AttributeError, ImportError) as error:
        raise Refused(said(error)) from error


def batches(model):
    """Data for inits that look at activations."""
    generator = torch.Generator().manual_seed(SEED)
    if model.main_input_name == "pixel_values":
        return [{"pixel_values": torch.randn(4, 3, 8, 8, generator=generator)} for _ in range(4)]
    ids = [torch.randint(3, 32, (4, 8), generator=generator) for _ in range(4)]
    more = [{"decoder_input_ids": i} if model.config.is_encoder_decoder else {} for i in ids]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), **m} for i, m in zip(ids, more)]


@torch.no_grad()
def move(adapted, has_frozen_b=False):
    """What training would move, away from where it starts: no B is zero."""
    generator = torch.Generator().manual_seed(SEED)
    if has_frozen_b:
        for key, p in adapted.named_parameters():
            if "lora_A" in key:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        return
    fill_b(adapted, SEED, 0.3)
    for key, p in adapted.named_parameters():
        if not p.requires_grad or "lora_A" in key or ("lora_B" in key and key.endswith(".weight")):
            continue
        if "lora_embedding_A" in key:
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        elif "lora_embedding_B" not in key:
            p.add_(0.2 * torch.randn(p.shape, generator=generator))


def save(adapted, option, folder, **more):
    fresh(folder)
    config = adapted.peft_config[option.adapter]
    if isinstance(config.target_modules, set):  # a set is written in an order of its own each time
        config.target_modules = sorted(config.target_modules)
    if isinstance(config.exclude_modules, set):
        config.exclude_modules = sorted(config.exclude_modules)
    if option.dtype is not None:
        for key, p in adapted.named_parameters():
            if "lora_" in key:
                p.data = p.data.to(option.dtype)
    adapted.save_pretrained(folder, **option.save, **more)
    (folder / "README.md").unlink(missing_ok=True)
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


# ---------------------------------------------------------------- what PEFT makes of them

def lora_modules(adapted, adapter):
    from peft.tuners.lora.layer import LoraLayer
    for name, module in adapted.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.r:
            yield name, module


@torch.no_grad()
def describe(name, module, adapter, generator):
    """Numbers of a layer, and its input and output without the base's bias."""
    from peft.tuners.lora.layer import Embedding, ParamWrapper, _ConvNd
    is_embedding = isinstance(module, Embedding)
    a = module.lora_embedding_A[adapter] if is_embedding else module.lora_A[adapter].weight
    b = module.lora_embedding_B[adapter] if is_embedding else module.lora_B[adapter].weight
    numbers = {"name": name, "kind": "embedding" if is_embedding else "linear", "fanInFanOut": getattr(module, "fan_in_fan_out", False),
               "shapeA": list(a.shape), "shapeB": list(b.shape),
               "rank": module.r[adapter], "alpha": module.lora_alpha[adapter], "scaling": module.scaling[adapter],
               "normA": a.norm().item(), "normB": b.norm().item(), "normDelta": module.get_delta_weight(adapter).norm().item()}
    if isinstance(module, ParamWrapper):
        own = name.replace(".base_layer", "")
        return {**numbers, "name": f"{own}.{module.parameter_name}", "kind": "parameter"}, {}
    bias = getattr(module.get_base_layer(), "bias", None)
    if is_embedding:
        x = torch.tensor([3, 0, 31, 3]) % a.shape[1]
        y = module(x)
    elif isinstance(module, _ConvNd):
        own = module.get_base_layer()
        numbers |= {"kind": "convolution", "stride": own.stride, "padding": own.padding, "dilation": own.dilation}
        x = torch.randn(1, a.shape[1], *[8] * (a.dim() - 2), generator=generator).double()
        y = module(x) - (0 if bias is None else bias.view(1, -1, *[1] * (a.dim() - 2)))
    else:
        x = torch.randn(3, module.in_features, generator=generator).double()
        y = module(x) - (0 if bias is None else bias)
    return numbers, {f"input.{name}": x, f"output.{name}": y}


@contextlib.contextmanager
def double_inits():
    """Inside, PEFT decomposes weights in float64, which its inits name float32."""
    from peft.tuners.lora.layer import LoraLayer

    def doubled(init):
        def run(*arguments):
            with all_double():
                return init(*arguments)
        return run

    saved = LoraLayer.pissa_init, LoraLayer.olora_init
    LoraLayer.pissa_init, LoraLayer.olora_init = map(doubled, saved)
    try:
        yield
    finally:
        LoraLayer.pissa_init, LoraLayer.olora_init = saved


def reload(arch, option, folder, is_exact=True):
    """The adapter as PEFT loads it again, on the base in the option's type, and that base; both then in float64."""
    from peft import PeftModel
    base = build(arch, option.tied)
    if option.dtype is not None:
        base = base.to(option.dtype)
    original = copy.deepcopy(base).double().state_dict()
    stored, pointers = stored_names(base), {v.data_ptr(): k for k, v in reversed(base.state_dict().items())}
    own = folder if option.adapter == "default" else folder / option.adapter
    # PEFT repeats the decompositions of pissa and olora, in float32; where two singular values are near each other that is too coarse.
    is_decomposed = is_exact and json.loads((own / "adapter_config.json").read_text(encoding="utf8"))["init_lora_weights"] in ("pissa", "olora")
    if is_decomposed:
        base = base.double()
    with warnings.catch_warnings(record=True) as caught, double_inits() if is_decomposed else contextlib.nullcontext():
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(base, own, adapter_name=option.adapter, is_trainable=True).eval()
    # A copy of a layer (layer_replication) shares the memory of the original's weight.
    for key, module in lora_modules(adapted, option.adapter):
        name = f"{key}.weight"
        weight = getattr(module.get_base_layer(), "weight", None)
        stored[name] = stored.get(name) or (name if weight is None else pointers.get(weight.data_ptr(), name))
    missing = [str(w.message) for w in caught if "missing" in str(w.message)]
    assert not missing, missing
    return adapted, original, stored


def refuse(out, error, when=""):
    fresh(out)
    write_json(out / "expected.json", {"refused": when + said(error)})
    return when + said(error)


def make(arch, name, out):
    option = OPTIONS[name]
    fresh(out)
    base = build(arch, option.tied)
    if option.dtype is not None:
        base = base.to(option.dtype)
    config = copy.deepcopy(option.config(ARCHITECTURES[arch]))  # PEFT adds to what it is given
    try:
        adapted = adapt(base, option, config)
    except Refused as refusal:
        return refuse(out, refusal)
    alphas = {key: module.lora_alpha[option.adapter] for key, module in lora_modules(adapted, option.adapter)}
    with tempfile.TemporaryDirectory() as start:
        more = {}
        if option.prepare == "convert":  # saving takes the untouched start out again
            adapted.peft_config["default"].init_lora_weights = True
            save(adapted, option, pathlib.Path(start))
            adapted.peft_config["default"].init_lora_weights = config["init_lora_weights"]
            more["path_initial_model_for_weight_conversion"] = start
        move(adapted, config.get("init_lora_weights") == "mica")
        try:
            save(adapted, option, out / "adapter", **more)
        except (ValueError, RuntimeError, KeyError) as error:
            return refuse(out, error, "PEFT cannot save it: ")
    try:
        again, original, stored = reload(arch, option, out / "adapter")
    except (RuntimeError, ValueError, KeyError) as error:
        return refuse(out, error, "PEFT cannot load what it saved: ")
    count = sum(p.numel() for p in again.parameters() if p.requires_grad)
    again = again.double()
    generator = torch.Generator().manual_seed(SEED)
    layers, tensors = [], {}
    try:
        for key, module in lora_modules(again, option.adapter):
            numbers, values = describe(key, module, option.adapter, generator)
            weight = numbers["name"] if numbers["kind"] == "parameter" else f"{numbers['name']}.weight"
            layers.append({**numbers, "weight": stored.get(weight, weight)})
            tensors |= values
    except RuntimeError as error:
        return refuse(out, error, "PEFT cannot run it: ")
    expected = {"base": "tied" if option.tied else "base", "trainableParams": count, "layers": layers}
    if option.prepare == "order":
        expected["trainedAlphas"] = alphas
    try:
        merged = reload(arch, option, out / "adapter")[0].double().merge_and_unload().state_dict()
    except (RuntimeError, ValueError) as error:
        save_tensors(out / "tensors.safetensors", tensors)
        write_json(out / "expected.json", {**expected, "mergeRefused": said(error)})
        return f"made; {error}"
    if config.get("layer_replication"):  # several changes in the one weight that the copies share: no merge of the adapter
        tensors |= {f"wrong.{k}": v for k, v in merged.items() if k in original and not torch.equal(v, original[k])}
        save_tensors(out / "tensors.safetensors", tensors)
        write_json(out / "expected.json", {**expected, "mergeRefused": REPLICATED, "isMergeWrong": True})
        return ""
    tensors |= {f"merged.{k}": v for k, v in merged.items() if k not in original or not torch.equal(v, original[k])}
    tied = [key for key, module in lora_modules(again, option.adapter) if stored[f"{key}.weight"] != f"{key}.weight"]
    if config.get("ensure_weight_tying") and tied:  # both modules' changes, which are one, in the one weight: once is right
        shared = stored[f"{tied[0]}.weight"]
        module = dict(lora_modules(again, option.adapter))[shared.removesuffix(".weight")]
        for key in (k for k in merged if f"merged.{k}" in tensors and stored.get(k) == shared):
            tensors |= {f"wrong.{key}": merged[key], f"merged.{key}": original[shared] + module.get_delta_weight(option.adapter)}
        expected["isMergeWrong"] = True
    if config.get("init_lora_weights") == "pissa" and option.prepare == "":  # what PEFT merges with its own float32
        coarse = reload(arch, option, out / "adapter", is_exact=False)[0].merge_and_unload().state_dict()
        tensors |= {f"coarse.{k}": coarse[k] for k in merged if f"merged.{k}" in tensors}
    if option.dtype is not None:  # what PEFT's own merges in this type give
        for kind, arguments in {"rounded": {}, "safe": {"safe_merge": True}}.items():
            rounded = reload(arch, option, out / "adapter")[0].merge_and_unload(**arguments).state_dict()
            tensors |= {f"{kind}.{k}": rounded[k] for k in merged if f"merged.{k}" in tensors}
    save_tensors(out / "tensors.safetensors", tensors)
    write_json(out / "expected.json", expected)
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "conformance")
    parser.add_argument("--archs", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--options", nargs="*", default=list(OPTIONS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for arch in args.archs:
        for tied in (False, True):
            save_base(arch, tied, args.out / arch / ("tied" if tied else "base"))
        for name in args.options:
            refusal = make(arch, name, args.out / arch / name)
            print(f"{arch} {name}: {refusal or 'made'}", flush=True)
    write_json(args.out / "matrix.json", {
        "versions": versions("torch", "transformers", "peft", "safetensors"),
        "architectures": {k: a.title for k, a in ARCHITECTURES.items()},
        "options": {k: o.title for k, o in OPTIONS.items()},
    })
    packed.pack(args.out, "conformance")


if __name__ == "__main__":
    main()
