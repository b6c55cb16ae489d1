"""Fine-tunes with OpenAI's client for Python, and reads every answer strictly as the type that the client has for it.

Usage: python strict.py BASE_URL KEY MODEL"""

import json
import sys
import time

import openai
from openai.types import FileDeleted, FileObject, Model, ModelDeleted
from openai.types.chat import ChatCompletion, ChatCompletionDeleted
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

base_url, key, base = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
raw = client.with_raw_response
checked = 0


def strict(kind, answer):
    global checked
    value = json.loads(answer.http_response.text)
    kind.model_validate(value, strict=True)
    unknown = set(value) - set(kind.model_fields) - {"lowrank", "user_provided_suffix", "status_details", "metadata", "root", "parent"}
    assert not unknown, f"{kind.__name__}: {unknown}"
    checked += 1
    return kind.model_validate(value)


def each(kind, answer):
    for value in json.loads(answer.http_response.text)["data"]:
        kind.model_validate(value, strict=True)
        global checked
        checked += 1


rows = "".join(json.dumps({"prompt": f"Boat {i} is ", "completion": "red."}) + "\n" for i in range(4)).encode()
file = strict(FileObject, raw.files.create(file=("rows.jsonl", rows), purpose="fine-tune"))
strict(FileObject, raw.files.retrieve(file.id))
each(FileObject, raw.files.list())
assert client.files.content(file.id).read() == rows
job = strict(
    FineTuningJob,
    raw.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        validation_file=file.id,
        suffix="py",
        metadata={"by": "python"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
        extra_body={"lowrank": {"rank": 2}},
    ),
)
bad = client.files.create(file=("bad.jsonl", b'{"x": 1}\n'), purpose="fine-tune")
failing = strict(FineTuningJob, raw.fine_tuning.jobs.create(model=base, training_file=bad.id))
waiting = strict(FineTuningJob, raw.fine_tuning.jobs.create(model=base, training_file=file.id))
strict(FineTuningJob, raw.fine_tuning.jobs.pause(waiting.id))
strict(FineTuningJob, raw.fine_tuning.jobs.resume(waiting.id))
assert strict(FineTuningJob, raw.fine_tuning.jobs.cancel(waiting.id)).status == "cancelled"
for name in (job.id, failing.id):
    while strict(FineTuningJob, raw.fine_tuning.jobs.retrieve(name)).status not in ("succeeded", "failed"):
        time.sleep(0.2)
assert client.fine_tuning.jobs.retrieve(failing.id).error.param == "training_file"
job = client.fine_tuning.jobs.retrieve(job.id)
assert job.status == "succeeded", job
each(FineTuningJob, raw.fine_tuning.jobs.list(metadata={"by": "python"}))
each(FineTuningJobEvent, raw.fine_tuning.jobs.list_events(job.id))
each(FineTuningJobCheckpoint, raw.fine_tuning.jobs.checkpoints.list(job.id))
strict(Model, raw.models.retrieve(job.fine_tuned_model))
each(Model, raw.models.list())
assert client.completions.create(model=job.fine_tuned_model, prompt="Boat", max_tokens=2).choices
chat = strict(
    ChatCompletion,
    raw.chat.completions.create(
        model=base, messages=[{"role": "user", "content": "x"}], max_tokens=2, store=True, metadata={"n": "1"}
    ),
)
strict(ChatCompletion, raw.chat.completions.retrieve(chat.id))
strict(ChatCompletion, raw.chat.completions.update(chat.id, metadata={"rating": "good"}))
each(ChatCompletion, raw.chat.completions.list(metadata={"rating": "good"}))
assert client.chat.completions.messages.list(chat.id).data[0].content == "x"
strict(ChatCompletionDeleted, raw.chat.completions.delete(chat.id))
strict(ModelDeleted, raw.models.delete(job.fine_tuned_model))
strict(FileDeleted, raw.files.delete(file.id))
for missing in (lambda: client.files.retrieve(file.id), lambda: client.fine_tuning.jobs.retrieve("ftjob-0")):
    try:
        missing()
        raise AssertionError("found what is not there")
    except openai.NotFoundError:
        pass
print(checked)
