"""Runs what `lowrank handoff` writes with PyPI's TRL, PEFT and accelerate on the CPU, and compares it with lowrank.

    node scripts/golden/handoff.mjs OUT && python scripts/golden/handoff.py OUT [--write]

First batches, losses of 5 steps and the weights after them; two processes; the adapter that comes back; rewards and loss of
a first step of GRPO on the same texts. With --write the numbers go to tests/golden/handoff, where the fast tests compare them.
"""

import importlib.util
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


def trainer_of(name, base, *more):
    """The trainer that a folder's train.py makes."""
    folder = OUT / name
    spec = importlib.util.spec_from_file_location(f"train_{name.replace('-', '_')}", folder / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.argv = ["train.py", *PLAIN, "--model_name_or_path", str(base), "--output_dir", str(OUT / f"{name}-back"), *more]
    return module.make()


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
    compare(f"{name}, losses", json.loads((OUT / f"{name}-here/losses.json").read_text()), golden["losses"])
    trainer.save_model(str(OUT / f"{name}-back"))
    back, here = (load_file(OUT / f"{name}-{side}/adapter_model.safetensors") for side in ("back", "here"))
    assert back.keys() == here.keys(), back.keys() ^ here.keys()
    worst = max((back[key].float() - here[key].float()).abs().max().item() for key in back)
    print(f"{name}, weights after 5 steps: {worst:.2e}")
    assert worst < TOLERANCE
    golden["weights"] = {key: back[key].flatten()[:8].tolist() for key in sorted(back)}
    return golden, trainer


def two_processes(name, base, losses):
    """The same run by two processes, which share each step's rows."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", __file__, str(OUT), "--rank", name]
    subprocess.run(command, check=True, env=env, timeout=300)
    compare(f"{name}, two processes", losses, json.loads((OUT / "two.json").read_text()))


def rank_main(name):
    trainer = trainer_of(name, ROOT / "models/union-3m", "--per_device_train_batch_size", "2", "--ddp_backend", "gloo")
    losses, step = [], trainer.training_step

    def counted(*args, **kwargs):
        loss = step(*args, **kwargs)
        losses.append(loss.detach().clone())
        return loss

    trainer.training_step = counted
    trainer.train()
    every = trainer.accelerator.gather(torch.stack(losses)).reshape(2, -1)
    if trainer.is_world_process_zero():
        (OUT / "two.json").write_text(json.dumps(every.mean(dim=0).tolist()))


def rewarded(base):
    """A run from rewards: its graders in Python, and the loss of the texts that lowrank sampled."""
    here = json.loads((OUT / "rewarded-here/first.json").read_text())
    trainer = trainer_of("rewarded", base, "--max_steps", "1")
    trainer._generate_single_turn = lambda *_, **__: (here["completions"], None)
    found, judge = [], trainer._calculate_rewards
    trainer._calculate_rewards = lambda *args: found.append(judge(*args)) or found[-1]
    losses = losses_of(trainer)
    compare("rewarded, rewards", sum(here["rewards"], []), found[0].flatten().tolist())
    norm = next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry)
    compare("rewarded, loss and norm of the first step", [here["loss"], here["gradientNorm"]], [*losses, float(norm)])


def main():
    base = ROOT / "models/union-3m"
    goldens = {}
    for name in json.loads((GOLDEN / "cases.json").read_text()):
        goldens[name], trainer = run(name, base)
        if name == "lora-plus":
            two_processes(name, base, goldens[name]["losses"])
            ids = torch.tensor([[0, 35, 274, 630]])
            goldens["logits"] = trainer.model.eval()(input_ids=ids).logits[0, -1, :16].tolist()
        if (OUT / f"{name}-records").exists():
            goldens[name]["records"] = first_batch(trainer_of(f"{name}-records", base))
            assert goldens[name]["records"]["input_ids"] == goldens[name]["first"]["input_ids"], name
            # Nothing predicts the first token, so that its label does not count.
            for own, other in zip(goldens[name]["records"]["labels"], goldens[name]["first"]["labels"], strict=True):
                assert own[1:] == other[1:], (name, own, other)
            print(f"{name}: TRL makes the same tokens and labels of the records")
    rewarded(base)
    if WRITES:
        (GOLDEN / "golden.json").write_text(json.dumps(goldens) + "\n")
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (GOLDEN / "back").mkdir(exist_ok=True)
            shutil.copy(OUT / "lora-plus-back" / file, GOLDEN / "back" / file)


if __name__ == "__main__":
    if "--rank" in sys.argv:
        rank_main(sys.argv[sys.argv.index("--rank") + 1])
    else:
        main()
