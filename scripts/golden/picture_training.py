"""Models of texts and pictures as PEFT trains them on chats with pictures: loss, gradients and steps.

    picture_training.py [--out tests/golden/picture-training] [--optimum PYTHON] [NAME …]

After picture_texts.py, whose graphs are trained. A tiny Gemma 3 is made here, in the layout of published folders: --optimum as there.
Needs requirements.txt and pillow 13.0.0. ../../tests/golden/README.md explains the folders.
"""
import argparse
import base64
import json
import pathlib
import shutil
import tempfile

import torch

import picture_texts
from picture_texts import FAMILIES, IDS, LINEARS, SEED, WIDTH, picture

STEPS, TARGETS = 5, rf".*(language_model|text_model).*\.({LINEARS})"
PLACE = "{% if c['type'] == 'image' %}PICTURE{% else %}{{ c['text'] }}{% endif %}"
# Its prompt is the beginning of what it writes, which LLaVA's is not.
TURNS = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}" + PLACE + "{% endfor %}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SIZES = {"square": (16, 16, 1), "wide": (14, 23, 3), "high": (21, 11, 5), "other": (16, 16, 9)}
BEGIN, END, SOFT = IDS["<|vision_start|>"], IDS["<|vision_end|>"], IDS["<|image_pad|>"]


def gemma3():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    vision = dict(hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
    text = {**picture_texts.TEXT, "num_hidden_layers": 2, "head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 16, "max_position_embeddings": 256, "tie_word_embeddings": False}
    return Gemma3ForConditionalGeneration(Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **vision}, text_config=text, mm_tokens_per_image=4, boi_token_index=BEGIN,
        eoi_token_index=END, image_token_index=SOFT, tie_word_embeddings=False, attn_implementation="eager"))


def records(squares):
    part = lambda value: {"type": "text", "text": value}
    said = lambda value: {"role": "assistant", "content": [part(value)]}
    asked = lambda *content: {"role": "user", "content": list(content)}
    image = {"type": "image"}
    wide, high = ("square", "other") if squares else ("wide", "high")
    return [
        {"messages": [asked(image, part("What is this")), said("the sea")], "images": [wide]},
        {"messages": [asked(part("Of old"), image, part(" the sea and "), image), said("was a king of the people")], "images": [high, "square"]},
        {"messages": [asked(part("Who was the king")), said("David")], "images": []},
    ]


# ---------------------------------------------------------------- what goes in

def with_processor(processor, template):
    from PIL import Image

    def encode(messages, images, asks):
        text = processor.apply_chat_template(messages, chat_template=template, add_generation_prompt=asks)
        given = {"images": [Image.fromarray(picture(*SIZES[name])) for name in images]} if images else {}
        inputs = dict(processor(text=text, **given, return_tensors="pt", add_special_tokens=False))
        inputs.pop("token_type_ids", None)
        return inputs
    return encode


def by_hand(tokenizer, template):
    """Gemma 3's processor for pictures of the model's size. Without token_type_ids, as in published graphs, a picture is read in order."""
    def encode(messages, images, asks):
        text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=asks, tokenize=False)
        begin, end, soft = (tokenizer.decode([i]) for i in (BEGIN, END, SOFT))
        ids = tokenizer(text.replace(begin, f"\n\n{begin}{soft * 4}{end}\n\n"), return_tensors="pt", add_special_tokens=False).input_ids
        pixels = [torch.from_numpy(picture(*SIZES[name])).permute(2, 0, 1).float() / 255 * 2 - 1 for name in images]
        return {"input_ids": ids, **({"pixel_values": torch.stack(pixels)} if pixels else {})}
    return encode


def example(encode, record):
    messages, images = record["messages"], record["images"]
    inputs = encode(messages, images, False)
    prompt = encode(messages[:-1], images, True)["input_ids"][0]
    labels = inputs["input_ids"].clone()
    assert labels[0, :len(prompt)].tolist() == prompt.tolist()
    labels[0, :len(prompt)] = -100
    inputs["attention_mask"] = torch.ones_like(labels)
    return inputs, labels


# ---------------------------------------------------------------- Gemma 3 as graphs

# The builder reads Gemma 3's rotations where transformers 4 has them.
ROTATIONS = '''
import onnxruntime_genai.models  # puts its folder on the path
from builders.base import Model
from transformers import Gemma3TextConfig as Config
Model.make_rope_init = lambda self, config: None
Config.rope_theta = property(lambda self: self.rope_parameters["full_attention"]["rope_theta"])
Config.rope_local_base_freq = property(lambda self: self.rope_parameters["sliding_attention"]["rope_theta"])
'''


def export_gemma3(source, out):
    from transformers import Gemma3ForConditionalGeneration
    model = Gemma3ForConditionalGeneration.from_pretrained(source, attn_implementation="eager").eval()

    class Pictures(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vision_tower, self.multi_modal_projector = model.model.vision_tower, model.model.multi_modal_projector

        def forward(self, pixel_values):
            return self.multi_modal_projector(self.vision_tower(pixel_values).last_hidden_state)

    picture_texts.write(out, "vision_encoder", Pictures(), {"pixel_values": torch.randn(2, 3, 16, 16)}, ["image_features"],
                        {"pixel_values": {0: "batch_size"}, "image_features": {0: "batch_size"}})
    picture_texts.write_embedding(out, model.model.language_model.embed_tokens)


def write_gemma3(folder, model, python, call):
    import onnx
    from exporters import genai
    from safetensors.torch import load_file, save_file
    from transformers import Gemma3ForCausalLM
    shutil.rmtree(folder / "onnx", ignore_errors=True)
    (folder / "onnx").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        source, language_folder = pathlib.Path(work) / "tiny-gemma3", pathlib.Path(work) / "language"
        model.save_pretrained(source)
        weights = load_file(source / "model.safetensors")  # transformers 4, which exports it, has one more module around the tower
        save_file({k if "vision_model" in k else k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in weights.items()},
                  source / "model.safetensors", {"format": "pt"})
        call(python, pathlib.Path(__file__).resolve(), "--export", source, "--out", folder / "onnx")
        language = Gemma3ForCausalLM(model.config.text_config)
        language.model.load_state_dict(model.model.language_model.state_dict())
        language.lm_head.load_state_dict(model.lm_head.state_dict())
        language.save_pretrained(language_folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(folder / file, language_folder / file)
        built = pathlib.Path(work) / "built"
        genai("exclude_embeds=true", "filename=decoder_model_merged.onnx", patch=ROTATIONS)(language_folder, built, None)
        onnx.save(onnx.load(built / "decoder_model_merged.onnx"), folder / "onnx" / "decoder_model_merged.onnx")
        for file in ("config.json", "generation_config.json"):
            shutil.copyfile(source / file, folder / file)
    settings = {"do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255,
                "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "Gemma3ImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


# ---------------------------------------------------------------- numbers

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    parser.add_argument("--export", type=pathlib.Path, help="only export this checkpoint, into --out")
    args = parser.parse_args()
    if args.export:
        return export_gemma3(args.export, args.out)
    import packed
    from common import ADAMW, GOLDEN, adamw_steps, adapt, fresh, save_adapter, save_tensors, trainable, versions, write_json
    from exporters import call
    from graphs import build
    from transformers import PreTrainedTokenizerFast
    out = args.out or GOLDEN / "picture-training"
    for name in args.names or [*FAMILIES, "gemma3"]:
        folder = fresh(out / name)
        if name == "gemma3":
            model, template = build(gemma3), TURNS.replace("PICTURE", "<|vision_start|>")
            picture_texts.write_tokenizer(folder)
            write_gemma3(folder, model, args.optimum, call)
            encode = by_hand(PreTrainedTokenizerFast.from_pretrained(folder), template)
        else:
            make, make_processor, template, place = FAMILIES[name]
            model, template = build(make), TURNS.replace("PICTURE", place) if name == "llava" else template
            encode = with_processor(make_processor(PreTrainedTokenizerFast.from_pretrained(GOLDEN / "graphs" / name)), template)
        rows = records(name == "gemma3")
        examples = [example(encode, row) for row in rows]
        adapted = adapt(model, SEED, 0.2, name=f"tiny-{name}", r=4, lora_alpha=8, target_modules=TARGETS, task_type=None)
        save_adapter(adapted, folder / "adapter-init")
        count = sum((labels >= 0).sum().item() for _, labels in examples)

        def loss_of():
            losses = []
            for inputs, labels in examples:
                logits = adapted(**inputs, use_cache=False).logits[0, :-1]
                losses.append(torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum"))
            return sum(losses) / count

        loss = loss_of()
        loss.backward()
        parameters = trainable(adapted)
        save_tensors(folder / "gradients.safetensors", {key: parameter.grad for key, parameter in parameters.items()})
        losses, norms = adamw_steps(parameters.values(), lambda step: loss_of(), STEPS)
        write_json(folder / "golden.json", {
            "versions": versions("torch", "transformers", "peft"), "adamw": ADAMW, "chatTemplate": template, "loss": loss.item(),
            "adamwLosses": losses, "gradNorms": norms, "rows": rows,
            "pictures": {key: {"height": p.shape[0], "width": p.shape[1], "data": base64.b64encode(p.tobytes()).decode()}
                         for key, p in ((key, picture(*size)) for key, size in SIZES.items())},
            "inputIds": [inputs["input_ids"][0].tolist() for inputs, _ in examples], "labels": [labels[0].tolist() for _, labels in examples],
        })
        print(name, loss.item(), losses, norms)
    packed.pack(out, "picture-training")


if __name__ == "__main__":
    main()
