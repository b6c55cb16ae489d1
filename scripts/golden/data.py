"""Tables as Python's csv module and pyarrow write them, and the rows that they read back.

    data.py [--out tests/golden/data]        (pyarrow 21.0.0)
"""
import argparse
import csv
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"

ROWS = [
    {"prompt": "plain", "completion": "words"},
    {"prompt": "a,b;c\td", "completion": "every divider"},
    {"prompt": 'he said "hi"', "completion": '"'},
    {"prompt": "two\nlines", "completion": "and\r\nmore\n\n"},
    {"prompt": "", "completion": " spaces around "},
    {"prompt": "é🐋日本", "completion": "''"},
]
CHATS = [
    {"id": 1, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello é"}]},
    {"id": 2, "messages": []},
    {"id": 3, "messages": [{"role": "user", "content": None}]},
]


def table(path, delimiter, **options):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"], delimiter=delimiter, **options)
        writer.writeheader()
        writer.writerows(ROWS)
    with open(path, newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file, delimiter=delimiter)) == ROWS


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "data")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    table(out / "excel.csv", ",")
    table(out / "unix.csv", ",", lineterminator="\n", quoting=csv.QUOTE_ALL)
    table(out / "semicolons.csv", ";")
    table(out / "tabs.tsv", "\t")
    for codec in ["snappy", "zstd", "gzip"]:
        pq.write_table(pa.Table.from_pylist(ROWS), out / f"{codec}.parquet", compression=codec, row_group_size=4)
    pq.write_table(pa.Table.from_pylist(CHATS), out / "nested.parquet")
    (out / "expected.json").write_text(json.dumps({"rows": ROWS, "chats": CHATS}, ensure_ascii=False, indent=1) + "\n")
