"""lm-eval's local-completions against `lowrank serve`: the log-likelihoods that transformers gives for the merged model.

    check_lm_eval.py        after npm run build; needs requirements.txt and lm-eval[api]==0.4.13
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import torch

from common import DATA, GOLDEN, REPO, UNION, union

ADAPTER = GOLDEN / "peft" / "f32"
RECORDS, WORDS = 24, 30
TASK = """task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: 0
"""


def records():
    """The next words of a text, and those of another."""
    texts = [json.loads(line)["text"].split()[:WORDS] for line in (DATA / "scripture.eval.jsonl").read_text("utf8").splitlines()[:RECORDS]]
    ends = [" ".join(words[-6:]) for words in texts]
    return [{"question": " ".join(words[:-6]), "choices": [ends[i], ends[i - 1]]} for i, words in enumerate(texts)]


def expected(asked):
    """Of (context, continuation): the sum of the log-probabilities of the continuation's tokens, cut as lm-eval cuts them."""
    from peft import PeftModel
    from transformers import AutoTokenizer
    model = PeftModel.from_pretrained(union(), ADAPTER).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(UNION)
    for context, continuation in asked:
        before = tokenizer(context, add_special_tokens=False).input_ids
        ids = tokenizer(context + continuation, add_special_tokens=False).input_ids
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        yield sum(float(scores[i - 1, ids[i]]) for i in range(len(before), len(ids)))


def main():
    import lm_eval
    from lm_eval.tasks import TaskManager
    server = subprocess.Popen(["node", REPO / "dist" / "cli" / "main.js", "serve", UNION, "--adapter", f"peft={ADAPTER}", "--port", "0"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))
        with tempfile.TemporaryDirectory() as scratch:
            file = pathlib.Path(scratch) / "own.jsonl"
            file.write_text("".join(json.dumps(record) + "\n" for record in records()), "utf8")
            (pathlib.Path(scratch) / "own.yaml").write_text(TASK.format(file=file), "utf8")
            arguments = f"model=peft,base_url={address}/v1/completions,tokenizer={UNION},num_concurrent=4,max_length=200"
            result = lm_eval.simple_evaluate("local-completions", model_args=arguments, tasks=["own"], log_samples=True, bootstrap_iters=0,
                                             task_manager=TaskManager(include_path=scratch))
    finally:
        server.terminate()
    samples = result["samples"]["own"]
    asked = [tuple(one) for sample in samples for one in sample["arguments"]]
    got = [float(one[0]) for sample in samples for one in sample["filtered_resps"]]
    off = max(abs(a - b) for a, b in zip(got, expected(asked), strict=True))
    print(f"{len(got)} log-likelihoods, largest difference {off:.1e}, accuracy {result['results']['own']['acc,none']:.2f}")
    if len(got) != 2 * RECORDS or not off <= 1e-3:
        sys.exit("lm-eval and transformers differ")


if __name__ == "__main__":
    main()
