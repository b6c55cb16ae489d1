"""What Python's re and PEFT's use of it make of expressions: tests/golden/expressions.json.

    expressions.py [--out tests/golden/expressions.json]

full: for each pattern a string with 1 where re.fullmatch takes the name; null where it does not compile. tail: the same for PEFT's
rank_pattern; layers: the index that PEFT's layers_pattern finds, or null. Patterns are those of well-known training tools and random ones.
"""
import argparse
import json
import pathlib
import random
import re
import warnings

from common import GOLDEN

SEED = 7
warnings.simplefilter("ignore")
NAMES = [
    "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head", "model.embed_tokens", "visual.blocks.3.attn.qkv",
    "language_model.model.layers.2.self_attn.k_proj", "transformer.h.1.attn.c_attn", "base.layers.1.experts.0.w1", "h.0.mlp",
    "unet.down_blocks.0.attentions.1.to_q", "vision_tower.patch_embed.proj", "", "a", "ab", "aab.b", "b.a", "a.b.0.c", "A.B", "_x1", "é.ß9",
]
REAL = [  # of PEFT's documentation, LLaMA-Factory, ms-swift, unsloth, diffusers, axolotl
    r".*(self_attn|mlp)\.(q_proj|k_proj)", r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$", r".*\.(q_proj|k_proj|v_proj|o_proj)",
    r"^(?!.*visual).*(?:q_proj|k_proj|down_proj|qkv).*", r"^(?!.*patch_embed).*(?:proj).*", r"^(language_model|visual)(?!.*(lm_head|embed)).*",
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp).*?(?:k_proj|q_proj|qkv|down_proj|proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:k_proj|q_proj|down_proj)))",
    r"(.*?(default).*|.*(q).*)*", r".*\.layers\.[024]\.(self_attn\.(q|o)_proj|mlp\.down_proj)", r"(.*\.)?layers\.\d+\..*", r"unet\..*to_[qkv]",
    r".*layers\.([0-9]|1[0-9])\..*_proj", r"\Amodel\..*\Z", r"(?i)MODEL\..*Q_PROJ", r"(?P<a>a)(?P=a)b\.b", r"(a)\1?b?(\.b)*", r"(?<=a)b", r"a(?<!b)b",
    r".*(?<!self_attn\.)q_proj", r"[^.]+", r"[\w.]+\d\.[a-z_]+", r"\S+\.\d+\.\S+", r"(?s:.)*", r"a{1,2}b?(\.b)?", r"a{,2}b", r"a{2}", r"a{,}", r"x{", r"a{b}",
    r"(?#c)a", r"\.", r"[]a]+", r"[^]a]+", r"[a-]+", r"[\]\-a]+", r"\x61b", r"\141b", r"\u0061", r"[\x61-c.]+", r"\bh\b.*", r"\B.*", r"(?a)\w+\.\w+", r"(|a)+", r"(a|b|)*\.",
    r"(a*)*b?", r"((a*)*)*(\.|b)*", r"(?:a|ab)(?:b|)", r"(?-i:a)B", r"(?i:A)b", r"(?i)É\.SS?ß?9", r"^$", r"", r"$a|a", r"a|b\.a", r"^^a",
    r"(", r")", r"a**", r"*a", r"a{2,1}", r"[b-a]", r"[a", r"\q", r"(?P<a>x)(?P<a>y)", r"(?P=a)", r"\2(a)(b)", r"(?<a>b)", r"^*", r"a\\", "a\\", r"(?z)a", r"a(?i)",
    r"(?=(a|b))\1+\.?.*", r"(?=(.)(.))\1\2.*", r"(?=(aa))?\1?.*", r"(?!(b))a\1?b?", r"aa(?<=(a))b\.\1?b?", r"(?=(?=(a)))\1(b)?(\.\1)?",
]
LAYERS = ["layers", "h", "blocks", r"(?:h|layers)", r"down_blocks", r"layer[s]?", r".*", r".*?", r"model\.layers", r"[a-z_]+"]


def random_pattern(rng, depth=3):
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(["a", "b", r"\.", ".", r"\d", r"\w", "[ab]", "[^a]", r"\b", "^", "$", "c", "0", ""])
    kind = rng.choice(["sequence"] * 4 + ["choice"] * 2 + ["repeat"] * 4 + ["group", "look", "reference"])
    inner = lambda: random_pattern(rng, depth - 1)
    if kind == "sequence":
        return inner() + inner() + (inner() if rng.random() < 0.5 else "")
    if kind == "choice":
        return f"(?:{inner()}|{inner()})"
    if kind == "repeat":
        return f"(?:{inner()}){rng.choice(['*', '+', '?', '*?', '+?', '??', '{2}', '{1,2}', '{0,3}?', '{,2}'])}"
    if kind == "group":
        return f"({inner()})"
    if kind == "look":
        return f"({rng.choice(['?=', '?!'])}{inner()})" if rng.random() < 0.8 else rng.choice(["(?<=a)", "(?<!b)", r"(?<=a\.)"])
    return rf"({inner()}){inner()}\1" if depth == 3 else inner()


def full(pattern):
    try:
        compiled = re.compile(pattern)
    except re.error:
        return None
    return "".join("1" if compiled.fullmatch(name) else "0" for name in NAMES)


def tail(key):
    try:
        return "".join("1" if re.match(rf"(.*\.)?({key})$", name) else "0" for name in NAMES)
    except re.error:
        return None


def layers(pattern):
    matches = [re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", name) for name in NAMES]
    return [match and match.group("idx") for match in matches]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "expressions.json")
    out = parser.parse_args().out
    rng = random.Random(SEED)
    patterns = list(dict.fromkeys(REAL + [random_pattern(rng) for _ in range(1500)]))
    # PEFT puts keys of rank_pattern inside its own expression: flags and references would mean something else there.
    keys = [p for p in patterns if not re.search(r"\(\?[aimsx]+\)|\\[1-9]", p)]
    body = {"names": NAMES, "full": {p: full(p) for p in patterns}, "tail": {p: tail(p) for p in keys[:500]},
            "layers": {p: layers(p) for p in LAYERS}}
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in body.items())
    out.write_text("{\n" + lines + "\n}\n", encoding="utf8")


if __name__ == "__main__":
    main()
