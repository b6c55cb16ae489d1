"""An event file as TensorBoard's own writer makes it.

    event_file.py [--out tests/golden/event-file.json]

Needs tensorboard 2.21.0 alone. ../../tests/golden/README.md explains the file.
"""
import argparse
import base64
import json
import pathlib
import tempfile

from tensorboard import version
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
START = 1764153600.25
EVENTS = [
    {"time": START + 1, "step": 0, "values": {"eval/loss": 2.5}},
    {"time": START + 2, "step": 1, "values": {"train/loss": 0.1, "train/learning_rate": 3e-4}},
    {"time": START + 3.5, "step": 100_000, "values": {"train/loss": -1e30, "a name that is longer than one hundred and twenty-seven bytes: " + "x" * 100: 7}},
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "event-file.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "events"
        with open(path, "wb") as file:
            writer = RecordWriter(file)
            write = lambda event: writer.write(event.SerializeToString())
            write(event_pb2.Event(wall_time=START, file_version="brain.Event:2"))
            write(event_pb2.Event(wall_time=START, step=7, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)))
            for event in EVENTS:
                values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in event["values"].items()]
                write(event_pb2.Event(wall_time=event["time"], step=event["step"], summary=summary_pb2.Summary(value=values)))
            writer.flush()
        content = path.read_bytes()
    body = {"versions": {"tensorboard": version.VERSION}, "start": START, "restart": 7, "events": EVENTS,
            "file": base64.b64encode(content).decode()}
    args.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
