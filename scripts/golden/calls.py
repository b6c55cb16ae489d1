"""Renders calls of functions by published chat templates, and reads them with vLLM's parsers.

The templates come from the source package llama-cpp-python 0.3.36 (PyPI; vendor/llama.cpp/models/templates, MIT), the
parsers from the wheel vllm 0.32.0 (PyPI; vllm/tool_parsers, Apache-2.0). The parsers run beside stubs of the rest of vLLM. Needs jinja2 3.1.6, pydantic, openai, regex, partial_json_parser.

  python calls.py TEMPLATES VLLM TEXTS > ../../tests/golden/calls.json     with the folders of the unpacked packages,
                                                                 and texts that lowrank wrote (see the test)
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import re
import sys
import types
from unittest.mock import MagicMock

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATES, VLLM, TEXTS = sys.argv[1:4]
# Form, template, parser of vLLM.
ROWS = [
    ("hermes", "Qwen-Qwen2.5-7B-Instruct", "hermes_tool_parser.Hermes2ProToolParser"),
    ("hermes", "Qwen-Qwen3-0.6B", "hermes_tool_parser.Hermes2ProToolParser"),
    ("hermes", "HuggingFaceTB-SmolLM3-3B", "hermes_tool_parser.Hermes2ProToolParser"),
    ("hermes", "ibm-granite-granite-4.0", "granite4_tool_parser.Granite4ToolParser"),
    ("qwen3-coder", "Qwen3-Coder", None),
    ("llama", "meta-llama-Llama-3.1-8B-Instruct", "llama_tool_parser.Llama3JsonToolParser"),
    ("llama", "meta-llama-Llama-3.2-3B-Instruct", "llama_tool_parser.Llama3JsonToolParser"),
    ("mistral", "mistralai-Mistral-Nemo-Instruct-2407", None),
    ("mistral-11", "unsloth-mistral-Devstral-Small-2507", None),
    ("gemma-4", "google-gemma-4-31B-it", None),
    ("lfm2", "LFM2.5-8B-A1B", "lfm2_tool_parser.Lfm2ToolParser"),
    ("lfm2", "LFM2.5-Instruct", "lfm2_tool_parser.Lfm2ToolParser"),
    ("granite", "ibm-granite-granite-3.3-2B-Instruct", None),
    ("harmony", "openai-gpt-oss-120b", None),
    ("deepseek-31", "deepseek-ai-DeepSeek-V3.1", "deepseekv31_tool_parser.DeepSeekV31ToolParser"),
]
# Texts in these forms that lowrank writes, for the parsers alone.
WRITTEN = {
    "hermes": "hermes_tool_parser.Hermes2ProToolParser",
    "llama": "llama_tool_parser.Llama3JsonToolParser",
    "pythonic": "pythonic_tool_parser.PythonicToolParser",
    "lfm2": "lfm2_tool_parser.Lfm2ToolParser",
    "phi": "phi4mini_tool_parser.Phi4MiniJsonToolParser",
    "deepseek": "deepseekv3_tool_parser.DeepSeekV3ToolParser",
    "deepseek-31": "deepseekv31_tool_parser.DeepSeekV31ToolParser",
    "function-gemma": "functiongemma_tool_parser.FunctionGemmaToolParser",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_lamp",
            "description": "Sets a lamp.",
            "parameters": {
                "type": "object",
                "properties": {
                    "room": {"type": "string", "description": "The room."},
                    "level": {"type": "integer", "description": "0 to 9."},
                    "warm": {"type": "boolean", "description": "Warm light."},
                    "scenes": {"type": "array", "items": {"type": "string"}, "description": "Names."},
                    "when": {"type": "object", "properties": {"hour": {"type": "number"}}, "description": "A time."},
                },
                "required": ["room"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "get_time", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}},
    },
]
# Lines of a template that show its form.
MARKS = r"<.?tool_call|TOOL_CALLS|functools|<parameter=|\"parameters\": *[a-z]|\|channel\||tool▁calls|List of tools"
CASES = {
    "one": [("set_lamp", {"room": "desk", "level": 3})],
    "all types": [("set_lamp", {"room": "hall", "level": -2, "warm": True, "scenes": ["a", "b"], "when": {"hour": 7.5}})],
    "text that looks like a number": [("set_lamp", {"room": "42"})],
    "quotes": [("set_lamp", {"room": "Ada's \"den\"", "scenes": ["it's"]})],
    "lines": [("set_lamp", {"room": "a\nb", "scenes": ["back\\slash"]})],
    "no arguments": [("get_time", {})],
    "parallel": [("set_lamp", {"room": "desk", "level": 3}), ("get_time", {}), ("set_lamp", {"room": "hall"})],
}


class Stub(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = MagicMock(name=name)
        if name[0].isupper():
            value = type(name, (), {"__init__": lambda self, *_, **fields: self.__dict__.update(fields)})
        setattr(self, name, value)
        return value


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Everything of vLLM but the parsers, and what is not installed."""

    def find_spec(self, name, path, target=None):
        head = name.split(".")[0]
        real = name == "vllm" or name.startswith("vllm.tool_parsers")
        if head not in ("vllm", "transformers", "torch", "mistral_common", "xgrammar", "openai_harmony") or real:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = Stub(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


def parsers():
    sys.meta_path.insert(0, Stubs())
    vllm = types.ModuleType("vllm")
    vllm.__path__ = []
    sys.modules["vllm"] = vllm
    importlib.import_module("vllm.envs").VLLM_TOOL_PARSE_REGEX_TIMEOUT_SECONDS = 5
    vllm.envs = sys.modules["vllm.envs"]
    pack = types.ModuleType("vllm.tool_parsers")
    pack.__path__ = [f"{VLLM}/vllm/tool_parsers"]
    sys.modules["vllm.tool_parsers"] = pack


def read(parser, text):
    module, name = parser.split(".")
    made = getattr(importlib.import_module(f"vllm.tool_parsers.{module}"), name)
    tokenizer = MagicMock()
    tokenizer.get_vocab.return_value = MagicMock(get=lambda *_: 1, __getitem__=lambda *_: 1, __contains__=lambda *_: True)
    request = MagicMock(tools=None)
    try:
        calls = made(tokenizer).extract_tool_calls(text, request).tool_calls
        return [[call.function.name, json.loads(call.function.arguments)] for call in calls]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compiled(text):
    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals |= {"raise_exception": refuse, "strftime_now": lambda _: "2026-01-01"}
    return env.from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text))


def messages_of(calls, as_text):
    made = [
        {
            "id": f"abcdefgh{i}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(args) if as_text else args},
        }
        for i, (name, args) in enumerate(calls)
    ]
    return [{"role": "user", "content": "Light"}, {"role": "assistant", "content": "", "tool_calls": made}]


def render(template, messages, prompt):
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return template.render(messages=messages, tools=TOOLS, add_generation_prompt=prompt, documents=None, **tokens)


def rendered():
    for form, name, parser in ROWS:
        source = open(f"{TEMPLATES}/{name}.jinja", encoding="utf8").read()
        template = compiled(source)
        row = {"form": form, "template": name, "sha256": hashlib.sha256(source.encode()).hexdigest(), "cases": {}}
        row["marks"] = list(dict.fromkeys(re.findall(f".{{0,40}}(?:{MARKS}).{{0,60}}", source)))[:12]
        for case, calls in CASES.items():
            answer = None
            for as_text in (False, True):
                messages = messages_of(calls, as_text)
                try:
                    prompt = render(template, messages[:1], True)
                    whole = render(template, messages, False)
                except Exception as error:
                    answer = answer or {"refused": str(error)[:120]}
                    continue
                start = len(prompt) if whole.startswith(prompt) else len(os.path.commonprefix([prompt, whole]))
                mark = whole.find("<|tool_call>", len(render(template, messages[:1], False)))
                answer = {"answer": whole[mark:] if mark >= 0 else whole[start:]}
                break
            if parser and "answer" in answer:
                got = read(parser, answer["answer"])
                answer["vllm"] = "same" if got == [[name, args] for name, args in calls] else got
            row["cases"][case] = answer
        yield row


def written(calls):
    """What vLLM reads in texts that lowrank wrote."""
    for form, cases in json.load(open(TEXTS, encoding="utf8")).items():
        if form in WRITTEN:
            read_as = {case: read(WRITTEN[form], text) for case, text in cases.items()}
            same = [case for case, got in read_as.items() if got == calls[case]]
            others = {case: got for case, got in read_as.items() if got != calls[case]}
            yield {"form": form, "same": same, "others": others, "texts": cases}


if __name__ == "__main__":
    parsers()
    calls = {case: [{"name": name, "arguments": args} for name, args in made] for case, made in CASES.items()}
    pairs = {case: [[call["name"], call["arguments"]] for call in made] for case, made in calls.items()}
    result = {"tools": TOOLS, "calls": calls, "rows": list(rendered()), "written": list(written(pairs))}
    print(json.dumps(result, ensure_ascii=False, separators=(",", ":")))
