"""What transformers' models call their tensors against what their checkpoints do, which of them are tied, and which their heads are.

    checkpoint_names.py [--raw FOLDER] [--add] [--out src/merge/plan/names/gen/tables.ts]

From transformers_classes.py, whose results --raw keeps: they take some minutes, and pillow, timm and torchvision. With --add, the
classes in FOLDER alone are added to the tables that are there. A rule is `name>stored`: a prefix of names, whole parts between
dots, of which the longest that fits counts, `#` for any number. A stored name with more to say is for one tensor:

    a|b      its rows are those of a, then as many of b
    …*…      of a stack: * is the number of the expert, whose part of it this is
    a^       each matrix is stored turned
    a[0:2:6] it is rows 0 and 1 of the 6 of a, in shares of a's rows
    !        stored in a form that is none of these
"""
import argparse
import collections
import functools
import json
import math
import os
import pathlib
import re
import sys
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
SPECIAL = re.compile(r"[!*|^\[]")
TASKS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification", "QUESTION_ANS": "ForQuestionAnswering"}
IDENTITY = ((), ())


def generalize(name, stored):
    """Both with # for the numbers that they share, in order; other numbers stay."""
    kept = stored.split(".")
    own, at = [], 0
    for part in name.split("."):
        place = next((i for i in range(at, len(kept)) if kept[i] == part), None) if NUMBER.fullmatch(part) else None
        if place is not None:
            kept[place], at = "#", place + 1
        own.append(part if place is None else "#")
    return ".".join(own), ".".join(kept)


def rule_of(name, held):
    """(pattern, what is stored) of a parameter that these stored tensors hold, or None."""
    kinds = {how[0] for _, how in held}
    if kinds <= {"same", "turned", "part"} and len(held) == 1:
        (stored, how), = held
        both = generalize(name, stored)
        if how[0] == "part":
            first, rows, total = (n // math.gcd(*how[1:]) for n in how[1:])
            return both[0], f"{both[1]}[{first}:{rows}:{total}]"
        return both[0], both[1] + ("^" if how[0] == "turned" else "")
    pattern = NUMBER.sub("#", name)
    if kinds != {"rows"} or len({how[5] for _, how in held}) > 1:
        return pattern, "!"
    first = sorted((how[2], stored, how) for stored, how in held if how[1] in (None, 0))
    stored = []
    for i, (row, own, how) in enumerate(first):
        _, expert, _, rows, total, _ = how
        numbers = NUMBER.findall(own)
        if row != i * rows or total != rows * len(first) or numbers != NUMBER.findall(name) + ([] if expert is None else ["0"]):
            return pattern, "!"
        own = NUMBER.sub("#", own)
        at = own.rfind("#")
        stored.append(own if expert is None else f"{own[:at]}*{own[at + 1:]}")
    return pattern, "|".join(stored) + ("^" if first[0][2][5] else "")


def rules_of(described):
    """Pattern of a tensor → what is stored, for every parameter of a class."""
    held = collections.defaultdict(list)
    for stored, name, how in described["pairs"]:
        held[name].append((stored, how))
    result = {}
    for name, parts in held.items():
        pattern, stored = rule_of(name, parts)
        if result.setdefault(pattern, stored) != stored:
            result[pattern] = "!"
    return result


def prefix_rules(rules):
    """The fewest rules for prefixes that rename as these do."""
    tree = {}
    for name, stored in rules.items():
        node = tree
        for part in name.split("."):
            node = node.setdefault(part, {})
        node[None] = tuple(stored.split("."))

    def leaves(node, path=()):
        for part, child in node.items():
            yield from [(path, child)] if part is None else leaves(child, (*path, part))

    memo = {}

    def best(node, path, active):
        """(cost, rules) of what is under a node, where the rule `active` holds so far."""
        key = id(node), active
        if key in memo:
            return memo[key]
        starts = collections.Counter(stored[:len(stored) - len(rest)] for rest, stored in leaves(node)
                                     if stored[len(stored) - len(rest):] == rest)
        found = None
        for rule in [active, *((path, start) for start, _ in starts.most_common(6))]:
            own = [] if rule == active else [rule]
            cost = sum(50 + len(".".join(a + b)) for a, b in own)
            for part, child in node.items():
                if part is None:
                    if rule[1] + path[len(rule[0]):] != child:
                        break
                    continue
                more = best(child, (*path, part), rule)
                if more is None:
                    break
                cost, own = cost + more[0], own + more[1]
            else:
                if found is None or cost < found[0]:
                    found = cost, own
        memo[key] = found
        return found

    return {".".join(a): ".".join(b) for a, b in best(tree, (), IDENTITY)[1]}


def without(prefix, text):
    return "|".join(one if one == "!" else one[len(prefix):] for one in text.split("|"))


def stripped(rules, prefix):
    """The rules without a prefix that all names on both sides have; None where one has not."""
    start = f"{prefix}."
    if prefix == "" or not all(f"{one}.".startswith(start) or one == "!" for a, b in rules.items() for one in [a, *b.split("|")]):
        return None
    return {without(start, f"{a}.")[:-1] if a == prefix else without(start, a): b and without(start, b) for a, b in rules.items()}


def rename(rules, name):
    """What the rules make of a name with #."""
    parts = name.split(".")
    for count in range(len(parts), -1, -1):
        start = ".".join(parts[:count])
        if start in rules:
            return ".".join([*([rules[start]] if rules[start] else []), *parts[count:]])
    return name


def is_implied(plain, whole, prefix):
    """Whether a model's names are what the rules of the one around it make of them, with its prefix."""
    def inside(stored):
        return "|".join(one if one == "!" else f"{prefix}.{one}" for one in stored.split("|"))
    return all(rename(whole, f"{prefix}.{name}") in (stored, inside(stored)) for name, stored in plain.items())


def front_coded(rules):
    """Line by line: how many characters each side has in common with the line before (in base 36), and its others."""
    lines, before = [], ("", "")
    for both in sorted(rules.items()):
        coded = []
        for now, last in zip(both, before):
            count = min(35, len(os.path.commonprefix([now, last])))
            coded.append("0123456789abcdefghijklmnopqrstuvwxyz"[count] + now[count:])
        lines.append(">".join(coded))
        before = both
    return "\n".join(lines)


def stems(classes):
    """Model type → what the names of its classes begin with."""
    result = {}
    for own in classes:
        known = result.setdefault(own["type"], own["class"])
        result[own["type"]] = os.path.commonprefix([known, own["class"]])
    return {t: re.sub(r"(For|Model|LMHead|Fo|F|M|Mo)$", "", stem) for t, stem in result.items()}


def name_tables(classes):
    """The sets of rules, and model type → which of them, `3=vit` where its rules are for names after `vit.`."""
    sets, types = {}, collections.defaultdict(list)
    paired = [own for own in classes if own.get("pairs")]
    by_type = collections.defaultdict(list)
    paired += [{**own, "pairs": own["prefixedPairs"], "class": f"{own['class']}, prefixed"} for own in paired if own.get("prefixedPairs")]
    for own in paired:
        own["plain"] = rules_of(own)
        own["rules"] = prefix_rules({a: b for a, b in own["plain"].items() if not SPECIAL.search(b)})
        own["rules"] |= {a: b for a, b in own["plain"].items() if SPECIAL.search(b)}
        by_type[own["type"]].append(own)
    for own in paired:
        if not own["rules"]:
            continue
        prefix = own["prefix"]
        short = stripped(own["rules"], prefix)
        around = [o for o in by_type[own["type"]] if o["prefix"] and any(name.startswith(f"{o['prefix']}.") for name in o["plain"])]
        if any(o is not own and is_implied(own["plain"], o["rules"], o["prefix"]) for o in around):
            continue
        text = front_coded(own["rules"] if short is None else short)
        entry = [sets.setdefault(text, len(sets)), ("=" if short is not None else "~") + prefix if prefix else ""]
        types[own["type"]].append(entry)
    # A set without a prefix is tried for the bare model too.
    result = {}
    for name, entries in sorted(types.items()):
        unique = sorted({(i, how) for i, how in entries})
        prefixed = {i for i, how in unique if how.startswith("=")}
        result[name] = " ".join(f"{i}{how}" for i, how in unique if how or i not in prefixed)
    return list(sets), result


def marked(name, prefix):
    return f"$.{name[len(prefix) + 1:]}" if prefix and name.startswith(f"{prefix}.") else name


def tie_tables(classes, stem, prefix):
    """`target=source@config` + for tied where config.json says nothing, ! for tied whatever it says → classes."""
    result = collections.defaultdict(list)
    for own in classes:
        pairs = []
        for target, source, way in own.get("ties", []):
            default, is_free = own["defaults"].get(way or "", [False, True])
            target, source = (marked(name, prefix.get(own["type"])) for name in (target, source))
            pairs.append(f"{target}={source}" + (f"@{way}" if way else "") + ("+" if default else "") + ("" if is_free else "!"))
        if pairs:
            result["\n".join(pairs)].append(own)
    return {key: " ".join(sorted(short_class(own, stem) for own in owners)) for key, owners in sorted(result.items())}


def short_class(own, stem):
    rest = own["class"].removeprefix(stem[own["type"]])
    return own["type"] if rest == "ForCausalLM" else f"{own['type']}:{rest}"


def head_tables(classes, prefix):
    """Task → tensors of a class that a pretrained model of its type need not have, `*` after what has a row for each label → types."""
    by_type = collections.defaultdict(list)
    for own in classes:
        if "params" in own:
            by_type[own["type"]].append(own)
    result = {task: collections.defaultdict(list) for task in TASKS}
    for name, owners in sorted(by_type.items()):
        def bare(own):
            return {p.removeprefix(f"{own['prefix']}.") for p in own["params"]}
        for task, ending in TASKS.items():
            mine = [own for own in owners if own["class"].endswith(ending)]
            others = [own for own in owners if not own["class"].endswith(tuple(TASKS.values())) and not own["class"].endswith("MultipleChoice")]
            if len(mine) != 1 or not others:
                continue
            common = functools.reduce(set.intersection, map(bare, others))
            head = [marked(p, prefix.get(name)) + ("*" if p in mine[0]["labels"] else "") for p in mine[0]["params"]
                    if p.removeprefix(f"{mine[0]['prefix']}.") not in common and not NUMBER.search(p)]
            if len(head) < 13 and head and any(p.endswith("*") for p in head):
                result[task][" ".join(head)].append(name)
    return {task: {head: " ".join(names) for head, names in sorted(heads.items())} for task, heads in result.items()}


def type_list(stem, prefix):
    """Each type, its classes' stem where it is not the type in capitals, and the prefix of the model without its head, `$` above."""
    result = []
    for name in sorted(stem):
        usual = "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", name))
        own = ["" if stem[name] == usual else stem[name], {"model": "", None: "-"}.get(prefix.get(name), prefix.get(name))]
        result.append(":".join([name, *own]).rstrip(":"))
    return " ".join(result)


def read_tables(file):
    """The tables that are there."""
    text = file.read_text(encoding="utf8")
    return json.loads(text[text.index("{"):])


def known_types(text):
    """Type → stem of its classes' names, prefix; as type_list writes them."""
    result = {}
    for one in text.split(" "):
        name, stem, prefix = [*one.split(":"), "", ""][:3]
        usual = "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", name))
        result[name] = stem or usual, {"": "model", "-": None}.get(prefix, prefix)
    return result


def joined(old, new):
    """Tables with those of more classes. What is known of a type's head stays: it is what all its classes tell."""
    rules = [*old["rules"], *(text for text in new["rules"] if text not in old["rules"])]
    names = dict(old["names"])
    for name, entries in new["names"].items():
        moved = [re.sub(r"^\d+", lambda found: str(rules.index(new["rules"][int(found[0])])), entry) for entry in entries.split(" ")]
        names[name] = " ".join(sorted({*names.get(name, "").split(), *moved}, key=lambda entry: (int(re.match(r"\d+", entry)[0]), entry)))
    ties = {key: " ".join(sorted({*old["ties"].get(key, "").split(), *new["ties"].get(key, "").split()}))
            for key in sorted({*old["ties"], *new["ties"]})}
    known = known_types(old["types"])
    heads = {}
    for task in TASKS:
        owners = {head: set(types.split()) for head, types in old["heads"][task].items()}
        for head, types in new["heads"][task].items():
            owners.setdefault(head, set()).update(name for name in types.split() if name not in known)
        heads[task] = {head: " ".join(sorted(types)) for head, types in sorted(owners.items()) if types}
    types = " ".join(sorted([*old["types"].split(" "), *(one for one in new["types"].split(" ") if one.split(":")[0] not in known)],
                            key=lambda one: one.split(":")[0]))
    return {"rules": rules, "names": dict(sorted(names.items())), "ties": ties, "heads": heads, "types": types}


def left_out(classes, file):
    """Reason → the classes that are not in the tables, or whose names are not; with those that the file lists already."""
    result = collections.defaultdict(list)
    described = {own["class"] for own in classes}
    for line in file.read_text(encoding="utf8").split("\n") if file else []:
        if found := re.fullmatch(r"// \d+ classes ([^:]+): (.*)\.", line):
            result[found[1]] += [name for name in found[2].split(", ") if name not in described]
    for own in classes:
        error = own.get("error") if "ties" not in own else None if own.get("pairs") else own.get("pairError")
        if error is None:
            continue
        needed = re.search(r"requires the (\w+) library", error)
        tied = "tie most of two whole models" if error.startswith("ties ") else "cannot be built from a small config"
        result[f"need {needed[1]}" if needed else tied].append(own["class"])
    return {reason: sorted(names) for reason, names in result.items() if names}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=pathlib.Path)
    parser.add_argument("--add", action="store_true")
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=pathlib.Path, default=root / "src/merge/plan/names/gen/tables.ts")
    args = parser.parse_args()
    sys.setrecursionlimit(10_000)
    import transformers
    from transformers_classes import describe_all
    with tempfile.TemporaryDirectory() as own:
        folder = args.raw or pathlib.Path(own)
        if not args.add:
            describe_all(folder)
        described = [json.loads(file.read_text(encoding="utf8")) for file in sorted(folder.glob("*.json"))]
    classes = [own for own in described if "ties" in own]
    stem = stems(classes)
    prefix = {own["type"]: own["prefix"] for own in classes if own["prefix"]}
    if args.add:
        known = known_types(read_tables(args.out)["types"])
        stem |= {name: own for name, (own, _) in known.items()}
        prefix |= {name: own for name, (_, own) in known.items() if own}
        classes = [own for own in classes if own["class"].startswith(stem[own["type"]])]
        own_types = {own["type"] for own in classes}
        stem, prefix = ({name: value for name, value in table.items() if name in own_types} for table in (stem, prefix))
    sets, types = name_tables(classes)
    tables = {"rules": sets, "names": types, "ties": tie_tables(classes, stem, prefix), "heads": head_tables(classes, prefix),
              "types": type_list(stem, prefix)}
    if args.add:
        tables = joined(read_tables(args.out), tables)
    reasons = "".join(f"// {len(names)} classes {reason}: {', '.join(names)}.\n" for reason, names in sorted(left_out(described, args.out if args.add else None).items()))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        f"// Generated by scripts/generate/checkpoint_names.py from transformers {transformers.__version__}; the script says how to read it.\n"
        f"// Classes that are not in the tables, or of which only the ties are:\n{reasons}\n"
        f"export const TABLES = {json.dumps(tables, indent=1, ensure_ascii=False)}\n", encoding="utf8")
    print(f"{args.out.stat().st_size} bytes, {len(tables['rules'])} sets of rules for {len(tables['names'])} types")


if __name__ == "__main__":
    main()
