"""Texts that transformers and PEFT write about pictures with tiny random models of three families, as graphs for transformers.js.

    picture_texts.py [--out tests/golden/graphs] [--optimum PYTHON] [--merged FOLDER] [NAME …]

--optimum: the Python of a virtual environment with requirements-optimum.txt, in which PyTorch's exporter runs. After vision_language.py, whose
LLaVA gets texts too. --merged: also writes the models with the adapters merged by PEFT, for transformersjs_pictures.mjs.
Needs requirements.txt and pillow 13.0.0. ../../tests/golden/README.md explains the folders.
"""
import argparse
import base64
import json
import pathlib
import shutil
import tempfile

import numpy as np
import torch

import vision_language

SEED, NEW_TOKENS, WIDTH = 7, 8, 16
# The last tokens of union-3m's vocabulary become special ones.
SPECIAL_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
                  "<|im_start|>", "<|im_end|>", "<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>", "<row_2_col_2>"]
IDS = {token: 2047 - i for i, token in enumerate(SPECIAL_TOKENS)}
TEXT = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "hidden_size": WIDTH, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256}
MROPE, THETA = [1, 1, 2], 10000.0
LINEARS = "q_proj|k_proj|v_proj|o_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj"

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
IDEFICS3_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}"
    "{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}"
    "{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")
QWEN2_VL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


# ---------------------------------------------------------------- models and processors

def idefics3():
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration
    vision = dict(hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
    return Idefics3ForConditionalGeneration(Idefics3Config(
        vision_config=vision, text_config={"model_type": "llama", **TEXT, "head_dim": 16, "tie_word_embeddings": False}, image_token_id=IDS["<image>"],
        scale_factor=2, pad_token_id=2, tie_word_embeddings=False, attn_implementation="eager"))


def qwen2_vl():
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    vision = dict(embed_dim=WIDTH, hidden_size=WIDTH, depth=1, num_heads=2, mlp_ratio=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
    text = {**TEXT, "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "mrope_section": MROPE, "rope_theta": THETA}}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(
        vision_config=vision, text_config=text, image_token_id=IDS["<|image_pad|>"], vision_start_token_id=IDS["<|vision_start|>"],
        vision_end_token_id=IDS["<|vision_end|>"], video_token_id=3, tie_word_embeddings=False, attn_implementation="eager"))


def llava_processor(tokenizer):
    from transformers import CLIPImageProcessorPil, LlavaProcessor
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
                          image_token="<image>", chat_template=LLAVA_TEMPLATE)


def idefics3_processor(tokenizer):
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=IDEFICS3_TEMPLATE)


def qwen2_vl_processor(tokenizer):
    from transformers import Qwen2VLImageProcessorPil, Qwen2VLProcessor

    class WithoutVideos(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, name, argument):
            return type(argument)

    WithoutVideos.__name__ = Qwen2VLProcessor.__name__
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 16 * 24})
    return WithoutVideos(images, tokenizer, video_processor=None, chat_template=QWEN2_VL_TEMPLATE)


FAMILIES = {  # name: (model, processor, chat template, what stands for a picture in a text)
    "llava": (vision_language.llava, llava_processor, LLAVA_TEMPLATE, "<image>"),
    "idefics3": (idefics3, idefics3_processor, IDEFICS3_TEMPLATE, "<image>"),
    "qwen2-vl": (qwen2_vl, qwen2_vl_processor, QWEN2_VL_TEMPLATE, "<|vision_start|><|image_pad|><|vision_end|>"),
}


# ---------------------------------------------------------------- what the second environment runs

def export(source, out):
    config = json.loads((source / "config.json").read_text())
    {"llava": vision_language.export, "idefics3": export_idefics3, "qwen2_vl": export_qwen2_vl}[config["model_type"]](source, out)


def write(out, name, module, inputs, outputs, axes):
    torch.onnx.export(module, tuple(inputs.values()), out / f"{name}.onnx", input_names=list(inputs), output_names=outputs, dynamic_axes=axes,
                      opset_version=18, do_constant_folding=True, dynamo=False)


TOKENS, TOTAL = {0: "batch_size", 1: "sequence_length"}, {0: "batch_size", 1: "total_sequence_length"}


def write_embedding(out, embedding):
    write(out, "embed_tokens", embedding, {"input_ids": torch.tensor([[1, 2, 3]])}, ["inputs_embeds"], {"input_ids": TOKENS, "inputs_embeds": TOKENS})


def write_decoder(out, decoder, position_ids, position_axes):
    parts = ("key", "value")
    write(out, "decoder_model_merged", decoder, {
        "inputs_embeds": torch.randn(2, 3, WIDTH), "attention_mask": torch.ones(2, 7, dtype=torch.int64), "position_ids": position_ids,
        **{f"past_key_values.0.{part}": torch.randn(2, 1, 4, 8) for part in parts},
    }, ["logits", *(f"present.0.{part}" for part in parts)], {
        "inputs_embeds": TOKENS, "attention_mask": TOTAL, "position_ids": position_axes, "logits": TOKENS,
        **{f"past_key_values.0.{part}": {0: "batch_size", 2: "past_sequence_length"} for part in parts},
        **{f"present.0.{part}": {0: "batch_size", 2: "total_sequence_length"} for part in parts},
    })


def decoder_of(language_model, lm_head):
    """A causal language model that reads vectors, with a cache as plain tensors."""
    from transformers import DynamicCache

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.lm_head = language_model, lm_head

        def forward(self, inputs_embeds, attention_mask, position_ids, *past):
            cache = DynamicCache.from_legacy_cache(tuple(zip(past[::2], past[1::2])))
            result = self.model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
                                use_cache=True)
            states = (state for layer in result.past_key_values.to_legacy_cache() for state in layer)
            return self.lm_head(result.last_hidden_state), *states

    return Decoder().eval()


def plain_masks():
    from optimum.exporters.onnx.model_patcher import sdpa_mask_without_vmap
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", sdpa_mask_without_vmap)  # the exporter cannot trace transformers' own


def export_idefics3(source, out):
    from transformers import Idefics3ForConditionalGeneration
    plain_masks()
    model = Idefics3ForConditionalGeneration.from_pretrained(source).eval()

    class Pictures(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vision_model, self.connector = model.model.vision_model, model.model.connector

        def forward(self, pixel_values, pixel_attention_mask):
            is_real = pixel_attention_mask.flatten(0, 1).flatten(1).any(-1)
            embeddings = self.vision_model.embeddings
            patches = embeddings.patch_embedding(pixel_values.flatten(0, 1)[is_real]).flatten(2).transpose(1, 2)
            states = patches + embeddings.position_embedding(torch.arange(embeddings.num_patches))
            states = self.vision_model.encoder(inputs_embeds=states).last_hidden_state
            return self.connector(self.vision_model.post_layernorm(states))

    tiles = {0: "batch_size", 1: "num_images"}
    write(out, "vision_encoder", Pictures(), {
        "pixel_values": torch.randn(1, 3, 3, 16, 16), "pixel_attention_mask": torch.ones(1, 3, 16, 16, dtype=torch.bool),
    }, ["image_features"], {"pixel_values": tiles, "pixel_attention_mask": tiles, "image_features": {0: "num_real_images"}})
    write_embedding(out, model.model.text_model.embed_tokens)


def export_qwen2_vl(source, out):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    plain_masks()
    config = Qwen2VLConfig.from_pretrained(source)
    # The names of transformers 4.
    config.text_config.rope_scaling, config.text_config.rope_theta = {"rope_type": "default", "mrope_section": MROPE}, THETA
    model = Qwen2VLForConditionalGeneration.from_pretrained(source, config=config).eval()
    visual = model.model.visual

    class Pictures(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = visual

        def forward(self, pixel_values, grid_thw):
            tower = self.visual
            height, width, merge = grid_thw[0, 1], grid_thw[0, 2], tower.spatial_merge_size
            # The order of patches: (row, column) of what is merged, then within it.
            row = torch.arange(height).unsqueeze(1).expand(-1, width)
            column = torch.arange(width).unsqueeze(0).expand(height, -1)
            order = lambda ids: ids.reshape(height // merge, merge, width // merge, merge).permute(0, 2, 1, 3).flatten()
            places = torch.stack([order(row), order(column)], dim=-1)
            frequency = tower.rotary_pos_emb.inv_freq
            rotary = (places.unsqueeze(-1).float() * frequency).flatten(1)
            both = torch.cat((rotary, rotary), dim=-1)
            states = tower.patch_embed(pixel_values)
            ends = torch.stack([torch.zeros_like(height), height * width]).to(torch.int32)
            for block in tower.blocks:
                states = block(states, cu_seqlens=ends, position_embeddings=(both.cos(), both.sin()))
            return tower.merger(states)

    one_picture_at_a_time()
    write(out, "vision_encoder", Pictures(), {"pixel_values": torch.randn(24, 96), "grid_thw": torch.tensor([[1, 4, 6]])}, ["image_features"],
          {"pixel_values": {0: "num_patches"}, "grid_thw": {0: "num_images"}, "image_features": {0: "num_features"}})
    language = model.model.language_model
    write_embedding(out, language.embed_tokens)
    write_decoder(out, decoder_of(language, model.lm_head), torch.arange(4, 7).repeat(3, 2, 1), {1: "batch_size", 2: "sequence_length"})


def one_picture_at_a_time():
    """Attention of the tower over all patches of a run: splitting them by picture cannot be traced."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen

    def forward(self, hidden_states, cu_seqlens, rotary_pos_emb=None, position_embeddings=None, **kwargs):
        length = hidden_states.shape[0]
        q, k, v = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
        q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        scores = (q @ k.transpose(1, 2) * self.scaling).softmax(-1)
        return self.proj((scores @ v).transpose(0, 1).reshape(length, -1))

    qwen.VisionAttention.forward = forward


# ---------------------------------------------------------------- texts

def picture(height, width, seed):
    """A picture with large shapes, so that resizing keeps something of it."""
    rough = np.random.default_rng(seed).random((3, 4, 3))
    rows, columns = np.linspace(0, 2.999, height).astype(int), np.linspace(0, 3.999, width).astype(int)
    noise = np.random.default_rng(seed + 1).random((height, width, 3))
    return (255 * (0.8 * rough[rows][:, columns] + 0.2 * noise)).astype(np.uint8)


def write_tokenizer(folder):
    """union-3m's, with special tokens in the places of its last ones."""
    from common import UNION
    tokenizer = json.loads((UNION / "tokenizer.json").read_text(encoding="utf8"))
    vocabulary = tokenizer["model"]["vocab"]
    gone = {token for token, id in vocabulary.items() if id > 2047 - len(SPECIAL_TOKENS)}
    tokenizer["model"]["vocab"] = {**{t: i for t, i in vocabulary.items() if t not in gone}, **IDS}
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in tokenizer["model"]["merges"]]
    tokenizer["model"]["merges"] = [f"{a} {b}" for a, b in pairs if a + b not in gone and a not in gone and b not in gone]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{"id": id, "content": token, **flags} for token, id in sorted(IDS.items(), key=lambda item: item[1])]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf8")
    config = json.loads((UNION / "tokenizer_config.json").read_text(encoding="utf8"))
    config["added_tokens_decoder"] |= {str(id): {"content": token, **flags} for token, id in IDS.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")


def cases_of(place):
    ask = lambda *content: [{"role": "user", "content": list(content)}]
    text = lambda value: {"type": "text", "text": value}
    return [
        {"prompt": f"{place} And the people said", "images": ["square"]},
        {"prompt": f"Of old {place} the sea and {place} was", "images": ["wide", "high"]},
        {"prompt": "And the people said unto him", "images": []},
        {"messages": ask({"type": "image"}, text("What is this")), "images": ["wide"]},
        {"messages": ask(text("Who was the king")), "images": []},
    ]


@torch.no_grad()
def continued(model, inputs):
    """What follows, greedily: tokens, the logarithm of their probability, and by how much the first is above the second."""
    result = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, output_logits=True,
                            return_dict_in_generate=True)
    ids = result.sequences[0, inputs["input_ids"].shape[1]:].tolist()
    logits = torch.stack(result.logits)[:, 0]
    top = logits.topk(2).values
    scores = torch.log_softmax(logits, -1)[range(len(ids)), ids]
    return {"ids": ids, "logprobs": [round(score, 6) for score in scores.tolist()]}, (top[:, 0] - top[:, 1]).min().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    parser.add_argument("--merged", type=pathlib.Path)
    parser.add_argument("--export", type=pathlib.Path, help="only export this checkpoint, into --out")
    args = parser.parse_args()
    if args.export:
        return export(args.export, args.out)
    from common import GOLDEN, adapt, fresh, save_adapter, versions, write_json
    from exporters import call
    from graphs import build
    from peft import PeftModel
    from PIL import Image
    from transformers import PreTrainedTokenizerFast
    pictures = {"square": picture(16, 16, 1), "wide": picture(14, 23, 3), "high": picture(21, 11, 5)}
    for name in args.names or FAMILIES:
        make, make_processor, template, place = FAMILIES[name]
        folder = (args.out or GOLDEN / "graphs") / name
        model = build(make)
        export_of = lambda what, out: export_graphs(what, name, out, args.optimum, call)
        if name != "llava":
            fresh(folder / "onnx")
            export_of(model, folder)
        write_tokenizer(folder)
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}, indent=2) + "\n")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        processor = make_processor(tokenizer)
        settings = {key: value for key, value in processor.image_processor.to_dict().items() if value is not None}
        settings["image_processor_type"] = settings["image_processor_type"].removesuffix("Pil")
        settings["processor_class"] = type(processor).__name__
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        extra = {"image_seq_len": 4} if name == "idefics3" else {}
        if name == "llava":
            extra = {"patch_size": 8, "num_additional_image_tokens": 0, "image_token": "<image>", "vision_feature_select_strategy": "default"}
        write_json(folder / "processor_config.json", {"processor_class": type(processor).__name__, **extra})
        cases = []
        for case in cases_of(place):
            text = case.get("prompt") or processor.apply_chat_template(case["messages"], add_generation_prompt=True)
            images = [Image.fromarray(pictures[image]) for image in case["images"]]
            options = {} if "prompt" in case else {"add_special_tokens": False}
            inputs = dict(processor(text=text, **({"images": images} if images else {}), return_tensors="pt", **options))
            inputs.pop("token_type_ids", None)
            cases.append((case, inputs))
        base = [continued(model, inputs) for _, inputs in cases]
        if name == "llava":
            adapted = PeftModel.from_pretrained(model, folder / "golden" / "adapter").eval()
        else:
            targets = rf".*\.({LINEARS}|qkv|attn\.proj|mlp\.0|mlp\.2)" if name == "qwen2-vl" else rf".*\.({LINEARS}|proj)"
            adapted = adapt(model, SEED, 0.2, name=f"tiny-{name}", r=4, lora_alpha=8, target_modules=targets, task_type=None).eval()
            save_adapter(adapted, folder / "golden" / "adapter", save_embedding_layers=False)
        own = [continued(adapted, inputs) for _, inputs in cases]
        if args.merged:
            merged = fresh(args.merged / name)
            shutil.copytree(folder, merged, dirs_exist_ok=True, ignore=shutil.ignore_patterns("golden"))
            export_of(adapted.merge_and_unload(), merged)
        write_json(folder / "golden" / "texts.json", {
            "versions": versions("torch", "transformers", "peft", "pillow"),
            "smallestLead": min(lead for _, lead in base + own),
            "pictures": {key: {"height": p.shape[0], "width": p.shape[1], "data": base64.b64encode(p.tobytes()).decode()} for key, p in pictures.items()},
            "cases": [{**case, "inputIds": inputs["input_ids"][0].tolist(), "base": b, "adapted": a}
                      for (case, inputs), (b, _), (a, _) in zip(cases, base, own)],
        })
        print(name, min(lead for _, lead in base + own))


def build_decoder(model, work, out):
    """A decoder with fused attention by onnxruntime-genai's builder, as that of SmolVLM is published."""
    import onnx
    from common import UNION
    from exporters import genai
    from transformers import LlamaForCausalLM
    language = LlamaForCausalLM(model.config.text_config)
    language.model.load_state_dict(model.model.text_model.state_dict())
    language.lm_head.load_state_dict(model.lm_head.state_dict())
    language.save_pretrained(work / "language")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(UNION / file, work / "language" / file)
    genai("exclude_embeds=true", f"filename={out.name}")(work / "language", work / "built", None)
    graph = onnx.load(work / "built" / out.name)
    for value in [*graph.graph.input, *graph.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "kv_cache_dim":  # transformers.js makes an empty cache from the shape
                dim.dim_value = model.config.text_config.head_dim
    onnx.save(graph, out)


def export_graphs(model, name, folder, python, call):
    """Writes config.json, generation_config.json and the graphs of a model."""
    from safetensors.torch import load_file, save_file
    with tempfile.TemporaryDirectory() as work:
        source = pathlib.Path(work) / f"tiny-{name}"
        model.save_pretrained(source)
        if name == "llava":  # transformers 4, which exports it, has one more module around the tower
            weights = load_file(source / "model.safetensors")
            save_file({k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in weights.items()},
                      source / "model.safetensors", {"format": "pt"})
        call(python, pathlib.Path(__file__).resolve(), "--export", source, "--out", folder / "onnx")
        if name == "idefics3":
            build_decoder(model, pathlib.Path(work), folder / "onnx" / "decoder_model_merged.onnx")
        for file in ("config.json", "generation_config.json"):
            shutil.copyfile(source / file, folder / file)


if __name__ == "__main__":
    main()
