"""Suites of golden data that git keeps in two files: tables.jsonl with all JSON files, tables.safetensors with all tensors.

    packed.py pack [SUITE …]       writes the two files of suites from their single files
    packed.py unpack [SUITE …]     writes the single files, which git ignores, in the same folder

A line of the table is one file: {"file": path, "json": content}, {"file": path, "sha256": …, "metadata": …} for a safetensors file, whose
tensors are `path/name` in tables.safetensors, or {"file": path, "same": path of another} for the same bytes again. Other files stay as they
are. `packed.mjs` unpacks too, before tests: the sum proves that a safetensors file has the bytes that PEFT wrote.
"""
import fnmatch
import hashlib
import json
import pathlib
import re
import struct
import sys

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
# Suite → files that git keeps as they are, since the documentation opens them
SUITES = {
    "combine": [], "config": [], "conformance": [], "dpo": [], "experts": [], "forms": [], "fused": ["*/tokenizer*.json", "*/preprocessor_config.json"],
    "genai-decoders": [], "gguf": [], "heads": [], "hybrids": [], "inits": [], "kinds": ["all-together/*", "dora/*", "linear/*", "qwen2.safetensors"], "kto": [],
    "names": [],
    "onnx-kinds": [], "picture-training": [], "seq2seq": [], "settings": [], "tied-models": [], "trained-tokens": [], "training-methods": [],
    "vocabulary-parts": [],
}
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
SAME_JSON = 1000  # from this length on, equal JSON files are kept once
TABLES = ("tables.jsonl", "tables.safetensors")
STAMP = ".unpacked"  # the sum of the tables that the single files are of, and their names


def compact(text):
    """JSON without blanks; numbers stay as they are spelled."""
    return re.sub(r'("(?:[^"\\]|\\.)*")|\s+', lambda found: found[1] or "", text)


def header(tensors, metadata):
    """The first bytes of a safetensors file, as the library writes them; tensors: (name, dtype, shape, number of bytes)."""
    content, at = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, dtype, shape, size in tensors:
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def parse(content):
    """(name, dtype, shape, bytes) of each tensor in the order of the file, and the metadata."""
    length = struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8:8 + length])
    metadata, data = table.pop("__metadata__", None), memoryview(content)[8 + length:]
    order = sorted(table.items(), key=lambda entry: entry[1]["data_offsets"])
    return [(name, info["dtype"], info["shape"], data[slice(*info["data_offsets"])]) for name, info in order], metadata


def pack(folder, suite=None):
    """Writes a suite's tables; its single files stay."""
    folder = pathlib.Path(folder)
    loose = SUITES[suite or folder.name]
    lines, tensors, seen = [], [], {}
    for path in sorted(folder.rglob("*")):
        file = path.relative_to(folder).as_posix()
        if path.suffix not in (".json", ".safetensors") or file in TABLES or any(fnmatch.fnmatch(file, pattern) for pattern in loose):
            continue
        content = path.read_bytes()
        entry = {"file": file}
        if path.suffix == ".json":
            text = compact(content.decode())
            if len(text) > SAME_JSON and text in seen:
                entry["same"] = seen[text]
            else:
                seen[text] = file
        elif content in seen:
            entry["same"] = seen[content]
        else:
            own, metadata = parse(content)
            sizes = [SIZES.get(dtype, 1) for _, dtype, _, _ in own]
            rebuilt = header([(*rest, len(data)) for *rest, data in own], metadata) + b"".join(data for *_, data in own)
            if rebuilt != content or sizes != sorted(sizes, reverse=True):
                raise SystemExit(f"{path} is not as the safetensors library writes: list it in SUITES")
            seen[content] = file
            entry |= {"sha256": hashlib.sha256(content).hexdigest(), "metadata": metadata}
            tensors += [(f"{file}/{key}", *rest) for key, *rest in own]
        line = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
        if path.suffix == ".json" and "same" not in entry:
            line = f'{line[:-1]},"json":{text}}}'
        lines.append(line)
    tensors.sort(key=lambda tensor: -SIZES.get(tensor[1], 1))
    content = header([(*rest, len(data)) for *rest, data in tensors], None) + b"".join(data for *_, data in tensors)
    table = "".join(f"{line}\n" for line in lines).encode()
    (folder / TABLES[0]).write_bytes(table)
    (folder / TABLES[1]).write_bytes(content)
    stamp(folder, table, content, [json.loads(line)["file"] for line in lines])


def stamp(folder, table, content, files):
    sum = hashlib.sha256(table + content).hexdigest()
    (folder / STAMP).write_text(json.dumps({"sum": sum, "files": files}), encoding="utf8")


def unpack(folder):
    """Writes the single files, if they are not those of the tables."""
    table, content = ((folder / name).read_bytes() for name in TABLES)
    before = json.loads((folder / STAMP).read_text(encoding="utf8")) if (folder / STAMP).exists() else {"sum": "", "files": []}
    if before["sum"] == hashlib.sha256(table + content).hexdigest() and all((folder / file).exists() for file in before["files"]):
        return
    tensors = {}
    for name, *rest in parse(content)[0]:
        file, found, key = name.partition(".safetensors/")
        assert found, name
        tensors.setdefault(f"{file}.safetensors", []).append((key, *rest))
    written = {}
    for line in table.decode().splitlines():
        entry = json.loads(line)
        file = entry["file"]
        if "same" in entry:
            written[file] = written[entry["same"]]
        elif "sha256" in entry:
            own = tensors.get(file, [])
            written[file] = header([(*rest, len(data)) for *rest, data in own], entry["metadata"]) + b"".join(data for *_, data in own)
            assert hashlib.sha256(written[file]).hexdigest() == entry["sha256"], file
        else:
            start = json.dumps(file, ensure_ascii=False)
            written[file] = line[len(f'{{"file":{start},"json":'):-1].encode()
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(written[file])
    for file in set(before["files"]) - set(written):
        (folder / file).unlink(missing_ok=True)
    stamp(folder, table, content, list(written))


def unpack_all():
    for suite in SUITES:
        if (GOLDEN / suite / TABLES[0]).exists():
            unpack(GOLDEN / suite)


if __name__ == "__main__":
    what, *suites = sys.argv[1:]
    for suite in suites or SUITES:
        {"pack": pack, "unpack": unpack}[what](GOLDEN / suite)
