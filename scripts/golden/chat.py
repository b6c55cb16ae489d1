"""What transformers makes of chats: the rendered text, token ids and the mask of assistant tokens.

    chat.py [--templates FOLDER] [--out tests/golden/chat]        (transformers 5.24)

`--templates` names a folder with the templates to copy: the chat_templates of TRL 1.16 (Apache-2.0), and SmolLM3's as in
llama-cpp-python 0.3.36 (vendor/llama.cpp/models/templates; Apache-2.0 says its first line). Without it those of `--out` are used.
The tokenizers are models/union-3m's with the templates' own tokens added, and a small SentencePiece-like one that is made here.
"""
import argparse
import json
import pathlib
import re
import shutil

from common import DATA, GOLDEN, UNION
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = [
    "cohere", "deepseek_r1_distill", "gemma3", "glm4moe", "lfm2", "llama3", "llama3_2", "phi3", "qwen2_5", "qwen3", "qwen3_instruct_2507",
    "smollm3",
]
TRAINING = ["gemma3_training", "llama3_training", "qwen3_training"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"]

# Generated parts that begin and end inside tokens.
BORDERS = "{% for m in messages %}{{ m['role'] }} {% generation %}{{ m['content'] }} {% endgeneration %}end{% endfor %}"

CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <now>.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "A city's name"}}, "required": ["city"]},
    },
}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


CASES = {
    "one": {"messages": [user("Hi"), assistant("Hello there!")]},
    "spaces": {
        "messages": [{"role": "system", "content": "  Be brief.\n"}, user(" 1 < 2 & \"x\"? "), assistant("\n\n  'Yes' e\u0301🐋.  ")],
    },
    "turns": {"messages": [{"role": "system", "content": "Be kind."}, user("A?"), assistant("B."), user("C?"), assistant("D.")]},
    "thinking": {
        "messages": [user("A?"), assistant("<think>\nhm\n</think>\n\nB."), user("C?"), assistant("<think>\nso\n</think>\n\nD.")],
    },
    "reasoning": {"messages": [user("A?"), assistant("B.", reasoning_content="hm")]},
    "tools": {
        "messages": [
            user("Weather?"),
            assistant("", tool_calls=[CALL]),
            {"role": "tool", "name": "get_weather", "content": '{"t": 3}'},
            assistant("Cold."),
        ],
        "tools": [TOOL],
    },
    "args": {"messages": [user("A?"), assistant("B.")], "args": {"enable_thinking": False}},
}


def sentencepiece():
    """BPE over a text whose spaces are ▁, with bytes for what it lacks, as Llama 2's and Gemma's tokenizer.json."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *bytes_], initial_alphabet=[])
    lines = (DATA / "scripture.jsonl").read_text().splitlines()[:400]
    words = [word for line in lines for word in re.findall(r" ?\w+|[^\w\s]", json.loads(line).get("text", ""))]
    tokenizer.train_from_iterator(words, trainer)
    definition = json.loads(tokenizer.to_str())
    # The bytes are ordinary tokens of the vocabulary.
    definition["added_tokens"] = [token for token in definition["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def fast(tokenizer, **names):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def render(tokenizer, template, messages, case, **options):
    return tokenizer.apply_chat_template(
        messages, tools=case.get("tools"), chat_template=template, date_string="26 Jul 2024", **case.get("args", {}), **options
    )


def attempt(make):
    try:
        return make()
    except Exception:
        return None  # the template refuses the chat


def texts_of(tokenizer, template):
    result = {}
    for name, case in CASES.items():
        messages = case["messages"]
        text = attempt(lambda: render(tokenizer, template, messages, case, tokenize=False))
        prompt = attempt(lambda: render(tokenizer, template, messages[:-1], case, tokenize=False, add_generation_prompt=True))
        result[name] = {"text": text, "prompt": prompt}
    return result


def masks_of(tokenizer, template):
    result = {}
    for name, case in CASES.items():
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        encoded = attempt(lambda: render(tokenizer, template, case["messages"], case, **options))
        if encoded is not None:
            mask = "".join(map(str, encoded["assistant_masks"]))
            result[name] = {"ids": list(encoded["input_ids"]), "mask": mask}
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--templates", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "chat")
    options = parser.parse_args()
    folder = options.out / "templates"
    folder.mkdir(parents=True, exist_ok=True)
    if options.templates:
        for name in [*TEMPLATES, *TRAINING]:
            shutil.copy(options.templates / f"{name}.jinja", folder)
    union = Tokenizer.from_file(str(UNION / "tokenizer.json"))
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    plain = fast(union, **names)
    read = lambda name: (folder / f"{name}.jinja").read_text()
    texts = {name: texts_of(plain, read(name)) for name in TEMPLATES}
    small = sentencepiece()
    (options.out / "sentencepiece.json").write_text(json.dumps(json.loads(small.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
    trimming = Tokenizer.from_file(str(UNION / "tokenizer.json"))
    trimming.post_processor = processors.ByteLevel(trim_offsets=True)
    composing = Tokenizer.from_file(str(UNION / "tokenizer.json"))
    composing.normalizer = normalizers.NFC()
    masks = {}
    for kind, tokenizer in {"byte-level": union, "trimming": trimming, "composing": composing, "sentencepiece": small}.items():
        tokenizer.add_special_tokens(SPECIAL)
        bos = {"bos_token": "<s>", "eos_token": "</s>"} if tokenizer is small else names
        templates = {"borders": BORDERS} | ({} if kind in ("trimming", "composing") else {name: read(name) for name in TRAINING})
        masks[kind] = {name: masks_of(fast(tokenizer, **bos), template) for name, template in templates.items()}
    expected = {"cases": CASES, "special": SPECIAL, "borders": BORDERS, "texts": texts, "masks": masks}
    body = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in expected.items())
    (options.out / "expected.json").write_text("{\n" + body + "\n}\n")
