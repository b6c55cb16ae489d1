"""Tables as Python's csv module and pyarrow write them, and the rows that they read back.

    data.py [--out tests/golden/data]        (pyarrow 21.0.0)
"""
import argparse
import csv
import decimal
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
# Every type and encoding that a writer of text data may choose; numbers repeat, so that pages have runs.
MIXED = [
    {
        "text": f"row {i // 7}" if i % 5 else None,
        "label": i % 3,
        "score": i / 4 if i % 4 else None,
        "is_good": i % 6 < 3,
        "price": decimal.Decimal(i * 7) / 100,
        "tags": [f"tag {j}" for j in range(i % 4)] if i % 9 else None,
        "source": {"name": "one", "year": 2000 + i // 50},
    }
    for i in range(150)
]
ENCODINGS = {
    "text": "DELTA_BYTE_ARRAY",
    "label": "DELTA_BINARY_PACKED",
    "score": "BYTE_STREAM_SPLIT",
    "is_good": "RLE",
    "tags.list.element": "DELTA_LENGTH_BYTE_ARRAY",
}
VARIANTS = {
    "version2": {"data_page_version": "2.0", "compression": "zstd"},
    "encodings1": {"use_dictionary": False, "column_encoding": ENCODINGS, "compression": "brotli"},
    "encodings2": {"use_dictionary": False, "column_encoding": ENCODINGS, "data_page_version": "2.0", "compression": "lz4"},
    "pages": {"data_page_size": 64, "compression": "snappy", "write_batch_size": 16},
    "plain": {"use_dictionary": False, "compression": "none", "row_group_size": 40},
}


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
    for name, options in VARIANTS.items():
        pq.write_table(pa.Table.from_pylist(MIXED), out / f"{name}.parquet", **options)
        assert pq.read_table(out / f"{name}.parquet").to_pylist() == MIXED
    mixed = [{**row, "price": float(row["price"])} for row in MIXED]
    (out / "expected.json").write_text(json.dumps({"rows": ROWS, "chats": CHATS, "mixed": mixed}, ensure_ascii=False, indent=1) + "\n")
