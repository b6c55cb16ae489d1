"""What the golden scripts share: batches, an adapter with known A and B, losses, gradients and AdamW in float64."""
import contextlib
import json
import os
import pathlib
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from safetensors.torch import save_file

import packed

REPO = pathlib.Path(__file__).resolve().parents[2]
UNION = REPO / "models" / "union-3m"
DATA = REPO / "models" / "data"
GOLDEN = REPO / "tests" / "golden"
PAD = 2
ADAMW = {"lr": 5e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weightDecay": 0.01, "maxGradNorm": 1.0}
LLAMA_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

packed.unpack_all()
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def fresh(folder):
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_json(path, value):
    """JSON with one line per top-level key, so that differences stay readable."""
    body = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + body + "\n}\n", encoding="utf8")


def union(dtype=torch.float32):
    """union-3m in PyTorch."""
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(UNION, attn_implementation="eager", dtype=dtype).eval()


def save_words(folder, count):
    """A tokenizer of the words w0, w1, …; w1 ends a text."""
    words = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(count)}, "unk_token": "w0"}
    parts = {"normalizer": None, "post_processor": None, "decoder": None, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    write_json(folder / "tokenizer.json", {"version": "1.0", "added_tokens": [], **parts, "model": words})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w1", "unk_token": "w0"})


# ---------------------------------------------------------------- batches

def make_batches():
    """Three right-padded batches of real text. Labels are not shifted; -100 on padding and, in the second, on prompts."""
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(UNION / "tokenizer.json"))

    def ids(name):
        lines = (DATA / name).read_text(encoding="utf8").splitlines()
        return [tokenizer.encode(json.loads(line)["text"]).ids for line in lines]

    scripture, whaling = ids("scripture.eval.jsonl"), ids("whaling.eval.jsonl")
    plan = [  # rows, their lengths, width, tokens of each row that are prompt
        (scripture[0:4], [24, 17, 21, 9], 24, [0, 0, 0, 0]),
        (whaling[0:4], [13, 24, 19, 22], 24, [4, 10, 1, 7]),
        (scripture[4:7], [31, 2, 18], 31, [0, 0, 0]),
    ]
    batches = []
    for rows, lengths, width, prompts in plan:
        batch = {"inputIds": [], "attentionMask": [], "labels": []}
        for row, n, prompt in zip(rows, lengths, prompts):
            batch["inputIds"].append(row[:n] + [PAD] * (width - n))
            batch["attentionMask"].append([1] * n + [0] * (width - n))
            batch["labels"].append([-100] * prompt + row[prompt:n] + [-100] * (width - n))
        batches.append(batch)
    return batches


def tensors(batch):
    return {"input_ids": torch.tensor(batch["inputIds"]), "attention_mask": torch.tensor(batch["attentionMask"]),
            "labels": torch.tensor(batch["labels"])}


# ---------------------------------------------------------------- adapters

def adapt(model, seed, b_std=0.02, name="union-3m", **config):
    """The model with a PEFT adapter: A by PEFT's own initialization, B ~ N(0, b_std); b_std 0 is PEFT's start."""
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(seed)
    config.setdefault("task_type", "CAUSAL_LM")
    model.name_or_path = name
    adapted = get_peft_model(model, LoraConfig(**config))
    fill_b(adapted, seed, b_std)
    return adapted.eval()


def fill_trained(model, seed):
    """Random numbers in all that is trained: the factors, and heads that are saved whole."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.1 if p.dim() == 1 else 0.5 / p.shape[1] ** 0.5))


def fill_b(adapted, seed, b_std):
    generator = torch.Generator().manual_seed(seed + 1)
    if b_std:
        for key, p in adapted.named_parameters():
            if "lora_B" in key and key.endswith(".weight"):
                with torch.no_grad():
                    p.copy_(torch.randn(p.shape, generator=generator) * b_std)


def move_replaced(adapted, seed):
    """Adds random numbers to the tensors that are saved whole."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in sorted(trainable(adapted).items()):
            if "lora_" not in key:
                p.add_(0.2 * torch.randn(p.shape, generator=generator))


def save_adapter(adapted, folder, **options):
    """As PEFT writes it, without the model card."""
    fresh(folder)
    config = adapted.peft_config["default"]
    if isinstance(getattr(config, "target_modules", None), set):  # a set is written in an order of its own each time
        config.target_modules = sorted(config.target_modules)
    if isinstance(getattr(config, "target_parameters", None), set):
        config.target_parameters = sorted(config.target_parameters)
    config.base_model_name_or_path = adapted.get_base_model().name_or_path
    adapted.save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)
    for file in folder.iterdir():  # safetensors writes files that only their owner reads
        file.chmod(0o644)


def peft_keys(values):
    """Names of parameters -> names in an adapter file."""
    return {k.replace(".default", ""): v for k, v in values.items()}


def trainable(adapted):
    return {k: p for k, p in adapted.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------- numbers

@contextlib.contextmanager
def all_double():
    """transformers asks for float32 by name in norms, softmax and loss; inside, these names mean float64."""
    saved = torch.float32, torch.Tensor.float
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = saved


def call(model, **inputs):
    """The model's output, computed throughout in the precision of its weights."""
    wide = next(model.parameters()).dtype == torch.float64
    with all_double() if wide else contextlib.nullcontext():
        out = model(**inputs, use_cache=False)
    assert not wide or out.logits.dtype == torch.float64
    return out


def loss_of(adapted, batch):
    return call(adapted, **tensors(batch)).loss


def correct_of(adapted, batch):
    """For each row, how many targets have the highest logit."""
    given = tensors(batch)
    with torch.no_grad():
        best = call(adapted, **given).logits.argmax(-1)[:, :-1]
    labels = given["labels"][:, 1:]
    return ((best == labels) & (labels >= 0)).sum(1).tolist()


def gradients(adapted, batch):
    adapted.zero_grad(set_to_none=True)
    loss_of(adapted, batch).backward()
    return {k: p.grad.clone() for k, p in trainable(adapted).items()}


def adamw(adapted, batches, steps, **options):
    """Losses before each update and gradient norms before clipping."""
    return adamw_steps(trainable(adapted).values(), lambda step: loss_of(adapted, batches[step % len(batches)]), steps, **options)


def adamw_steps(params, loss_at, steps, lr=ADAMW["lr"]):
    """The same, of any loss: that of a step by its number."""
    params = list(params)
    optimizer = torch.optim.AdamW(params, lr=lr, betas=ADAMW["betas"], eps=ADAMW["eps"],
                                  weight_decay=ADAMW["weightDecay"], foreach=False)
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_at(step)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, ADAMW["maxGradNorm"], foreach=False).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def save_tensors(path, values):
    """float32 rounding of the values, under PEFT's key names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().to(torch.float32).contiguous() for k, v in sorted(peft_keys(values).items())},
              path, metadata={"format": "pt"})
    path.chmod(0o644)


def worst_gradient_error(truth, other):
    """Largest error of a tensor over that tensor's largest value."""
    return max(((other[k].double() - t).abs().max() / t.abs().max()).item() for k, t in truth.items())


def versions(*names):
    from importlib.metadata import version
    return {n: version(n) for n in names}


@torch.no_grad()
def last_logits(model, ids):
    """The last position's logits of each row, in float64."""
    return call(model.double(), input_ids=torch.tensor(ids)).logits[:, -1]


@torch.no_grad()
def logits_summary(model, prompts):
    """The last position's five largest logits and every 32nd, per prompt, computed in the model's precision."""
    out = []
    for ids in prompts:
        logits = call(model, input_ids=torch.tensor([ids])).logits[0, -1]
        top = logits.topk(5)
        out.append({"inputIds": ids, "top5Ids": top.indices.tolist(), "top5Logits": top.values.tolist(), "logitIds": list(range(0, 2048, 32)),
                    "logits": logits[::32].tolist()})
    return out
