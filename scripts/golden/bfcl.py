"""Verdicts of the Berkeley Function Calling Leaderboard's checker on right and changed calls: tests/golden/bfcl.json.

    pip download --no-deps bfcl-eval==2026.3.23 && unzip -q -d bfcl bfcl_eval-*.whl
    PYTHONPATH=bfcl python bfcl.py

The functions, the questions' ids and the possible answers are those of the package's data (Apache-2.0).
"""

import collections
import copy
import json
import pathlib
import random
import sys
import types

# The table of models imports the clients of all vendors. Only one of its fields is read.
table = types.ModuleType("bfcl_eval.constants.model_config")
config = types.SimpleNamespace(underscore_to_dot=False)
table.MODEL_CONFIG_MAPPING = collections.defaultdict(lambda: config)
sys.modules["bfcl_eval.constants.model_config"] = table

import bfcl_eval  # noqa: E402
from bfcl_eval.constants.enums import Language  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402

DATA = pathlib.Path(bfcl_eval.__file__).parent / "data"
COUNTS = {"simple_python": 90, "multiple": 60, "parallel": 55, "parallel_multiple": 55, "irrelevance": 20}
draw = random.Random(55)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def chosen(values):
    """A call's value for one of the possible answers: dicts have possible values of their own."""
    given = [value for value in values if value != ""]
    value = copy.deepcopy(draw.choice(given) if given else "")
    return [inner(item) for item in value] if isinstance(value, list) else inner(value)


def inner(value):
    if not isinstance(value, dict):
        return value
    return {key: chosen(each) for key, each in value.items() if isinstance(each, list) and any(v != "" for v in each)}


def right(answers):
    calls = []
    for answer in answers:
        [(name, parameters)] = answer.items()
        given = {key: chosen(values) for key, values in parameters.items() if any(v != "" for v in values)}
        calls.append({name: given})
    return calls


def places(calls, wanted):
    """(dict, key) of each argument of a type, within dicts and lists too."""
    found = []

    def visit(holder):
        for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            if type(value) in wanted:
                found.append((holder, key))
            if isinstance(value, (dict, list)):
                visit(value)

    for call in calls:
        for arguments in call.values():
            visit(arguments)
    return found


def at(*wanted):
    def decorate(change):
        def apply(calls, case):
            found = places(calls, wanted)
            if not found:
                return False
            holder, key = draw.choice(found)
            holder[key] = change(holder[key])
            return True

        return apply

    return decorate


def arguments(calls):
    [value] = draw.choice(calls).values()
    return value


def drop(calls, case):
    of = arguments(calls)
    return of.pop(draw.choice(list(of)), None) is not None if of else False


def leave_out_optional(calls, case):
    for call, answer in zip(calls, case["answers"]):
        [(name, given)] = call.items()
        for key, values in answer[name].items():
            if "" in values and key in given:
                del given[key]
                return True
    return False


def rename(calls, case):
    call = draw.choice(calls)
    [(name, given)] = list(call.items())
    call.clear()
    call[name + "_all"] = given
    return True


def unknown(calls, case):
    arguments(calls)["surprise"] = 1
    return True


def repeat(calls, case):
    calls.append(copy.deepcopy(calls[-1]))
    return True


def fewer(calls, case):
    calls.pop()
    return True


def turn(calls, case):
    calls.reverse()
    return len(calls) > 1


KINDS = {
    "right": lambda calls, case: True,
    "another possible value": lambda calls, case: True,
    "letters and points of a text": at(str)(lambda text: text.upper().replace(" ", "-") + "."),
    "other quotes": at(str)(lambda text: text + "'" if "'" not in text else text.replace("'", '"')),
    "another text": at(str)(lambda text: text + " x"),
    "another number": at(int, float)(lambda number: number + 1),
    "whole number as a fraction": at(int)(float),
    "fraction as a whole number": at(float)(int),
    "number as text": at(int, float)(str),
    "text as a list": at(str)(lambda text: [text]),
    "truth turned": at(bool)(lambda value: not value),
    "truth as a number": at(bool)(int),
    "list turned": at(list)(lambda items: items[::-1]),
    "list cut": at(list)(lambda items: items[:-1]),
    "part of a dict dropped": at(dict)(lambda value: dict(list(value.items())[1:])),
    "part of a dict added": at(dict)(lambda value: {**value, "surprise": 1}),
    "argument dropped": drop,
    "optional argument left out": leave_out_optional,
    "unknown argument": unknown,
    "another function": rename,
    "one call more": repeat,
    "one call less": fewer,
    "calls turned": turn,
}

cases = []
for category, count in COUNTS.items():
    rows = sorted(lines(DATA / f"BFCL_v4_{category}.json"), key=lambda row: len(json.dumps(row["function"])))[:160]
    draw.shuffle(rows)
    path = DATA / "possible_answer" / f"BFCL_v4_{category}.json"
    answers = {row["id"]: row["ground_truth"] for row in lines(path)} if path.exists() else {}
    used = collections.Counter()
    made = 0
    for row in rows * 2:
        if made == count:
            break
        case = {"id": row["id"], "functions": row["function"], "answers": answers.get(row["id"], [])}
        if category == "irrelevance":
            calls = [] if made % 2 else [{row["function"][0]["name"]: {}}]
            cases.append({**case, "kind": "called" if calls else "left alone", "calls": calls, "valid": not calls})
            made += 1
            continue
        for kind in sorted(KINDS, key=lambda kind: used[kind]):
            calls = right(case["answers"])
            if KINDS[kind](calls, case):
                break
        try:
            verdict = ast_checker(row["function"], calls, case["answers"], Language.PYTHON, category, "any")
        except Exception:  # it has no verdict on such values
            continue
        cases.append({**case, "kind": kind, "calls": calls, "valid": verdict["valid"]})
        used[kind] += 1
        made += 1

# Answers and calls are kept as text, which tells 1 from 1.0.
for case in cases:
    case["functions"] = [
        {"name": tool["name"], "parameters": tool["parameters"]} for tool in case["functions"]
    ]
    case["answers"] = json.dumps(case["answers"])
    case["calls"] = [[name, json.dumps(given)] for call in case["calls"] for name, given in call.items()]


def bare(value):
    """Without descriptions, which the checker does not read."""
    if isinstance(value, list):
        return [bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: bare(item) for key, item in value.items() if not (key == "description" and isinstance(item, str))}


out = pathlib.Path(__file__).parents[2] / "tests/golden/bfcl.json"
out.write_text("[\n" + ",\n".join(json.dumps(bare(case), separators=(",", ":")) for case in cases) + "\n]\n")
print(collections.Counter((case["valid"]) for case in cases), collections.Counter(case["kind"] for case in cases))
