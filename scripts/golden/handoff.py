"""Runs what `lowrank handoff` writes with PyPI's TRL, PEFT and accelerate on the CPU, and compares it with lowrank.

    node scripts/golden/handoff.mjs OUT && python scripts/golden/handoff.py OUT [--write]

First batches, losses of 5 steps, the first gradient norm, and the weights after them; the adapter that comes back; and `trl` itself
reads each settings file. The trainers start from adapter/, which the commands of `trl` do not. With --write the numbers go to tests/golden/handoff, where the fast tests compare them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/handoff"
OUT = Path(sys.argv[1]).resolve()
WRITES = "--write" in sys.argv
TOLERANCE = 1e-4
PLAIN = ["--bf16", "false", "--use_cpu", "true", "--save_strategy", "no", "--disable_tqdm", "true"]
torch.set_num_threads(1)


def trainer_of(name, base):
    """The trainer that `trl` makes of a folder's settings file, but started from its adapter."""
    import trl
    from datasets import load_dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    os.chdir(OUT / name)
    [file] = Path().glob('*.yaml')
    kind = file.stem.upper()
    options = ["--config", file.name, *PLAIN, "--output_dir", str(OUT / f"{name}-back")]
    parser = trl.TrlParser((trl.ScriptArguments, getattr(trl, f"{kind}Config"), trl.ModelConfig))
    script, args, model_args, *_ = parser.parse_args_and_config(args=options, fail_with_unknown_args=True)
    assert model_args.use_peft and model_args.lora_r == 2
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), "adapter", is_trainable=True)
    data = load_dataset(script.dataset_name)
    return getattr(trl, f"{kind}Trainer")(model=model, args=args, train_dataset=data["train"], processing_class=AutoTokenizer.from_pretrained(base))


def command(name, base):
    """The command of README.md, for one step."""
    [file] = (OUT / name).glob("*.yaml")
    line = [Path(sys.executable).with_name("trl"), file.stem, "--config", file.name, *PLAIN, "--model_name_or_path", base, "--max_steps", "1",
            "--output_dir", OUT / f"{name}-command"]
    subprocess.run([str(word) for word in line], check=True, cwd=OUT / name, timeout=300, stdout=subprocess.DEVNULL)
    print(f"{name}: {file.stem} runs by its command")


def first_batch(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    return {key: batch[key].tolist() for key in ("input_ids", "labels", "completion_mask", "KL_input_ids") if key in batch}


def losses_of(trainer):
    """Losses of the steps, in full precision."""
    losses, step = [], trainer.training_step

    def counted(*args, **kwargs):
        loss = step(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.training_step = counted
    trainer.train()
    size = trainer.args.gradient_accumulation_steps
    return [sum(losses[i : i + size]) for i in range(0, len(losses), size)]


def compare(what, here, there):
    worst = max(abs(a - b) for a, b in zip(here, there, strict=True))
    print(f"{what}: {worst:.2e}")
    assert worst < TOLERANCE, f"{what}: {here} here, {there} there"


def run(name, base):
    trainer = trainer_of(name, base)
    golden = {"first": first_batch(trainer), "losses": losses_of(trainer)}
    own = json.loads((OUT / f"{name}-here/losses.json").read_text())
    compare(f"{name}, losses", own["losses"], golden["losses"])
    norm = next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry)
    compare(f"{name}, first gradient norm", [1], [float(norm) / own["norms"][0]])
    trainer.save_model(str(OUT / f"{name}-back"))
    back, here = (load_file(OUT / f"{name}-{side}/adapter_model.safetensors") for side in ("back", "here"))
    assert back.keys() == here.keys(), back.keys() ^ here.keys()
    worst = max((back[key].float() - here[key].float()).abs().max().item() for key in back)
    print(f"{name}, weights after 5 steps: {worst:.2e}")
    assert worst < TOLERANCE
    golden["weights"] = {key: back[key].flatten()[:8].tolist() for key in sorted(back)}
    return golden, trainer


def main():
    base = ROOT / "models/union-3m"
    goldens = {}
    for name in json.loads((GOLDEN / "cases.json").read_text()):
        goldens[name], trainer = run(name, base)
        if name == "warm":
            ids = torch.tensor([[0, 35, 274, 630]])
            goldens["logits"] = trainer.model.eval()(input_ids=ids).logits[0, -1, :16].tolist()
        if (OUT / f"{name}-records").exists():
            goldens[name]["records"] = first_batch(trainer_of(f"{name}-records", base))
            assert goldens[name]["records"]["input_ids"] == goldens[name]["first"]["input_ids"], name
            # Nothing predicts the first token, so that its label does not count.
            for own, other in zip(goldens[name]["records"]["labels"], goldens[name]["first"]["labels"], strict=True):
                assert own[1:] == other[1:], (name, own, other)
            print(f"{name}: TRL makes the same tokens and labels of the records")
    for name in ("warm", "dora-records", "preferences", "judged"):
        command(name, base)
    if WRITES:
        (GOLDEN / "golden.json").write_text(json.dumps(goldens) + "\n")
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (GOLDEN / "back").mkdir(exist_ok=True)
            shutil.copy(OUT / "warm-back" / file, GOLDEN / "back" / file)


if __name__ == "__main__":
    main()
