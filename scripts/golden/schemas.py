"""Writes tests/golden/schemas/pydantic.json: schemas as Pydantic makes them, each with a text that its model accepts and
one that it refuses. Needs pydantic[email]==2.14.4"""

import datetime as dt
import enum
import ipaddress
import json
import pathlib
import uuid
from typing import Annotated, Literal, Optional, Union

import pydantic
from pydantic import AnyUrl, BaseModel, ConfigDict, EmailStr, Field, HttpUrl, TypeAdapter, create_model

STRICT = ConfigDict(extra="forbid")


class Color(str, enum.Enum):
    red = "red"
    blue = "blue"


class Level(enum.IntEnum):
    low = 1
    high = 2


class Address(BaseModel):
    street: str
    city: str = "Paris"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: bool


class Node(BaseModel):
    value: int
    children: list["Node"] = []


def fields(config=None, **kinds):
    return create_model("Model", __config__=config, **{name: kind if isinstance(kind, tuple) else (kind, ...) for name, kind in kinds.items()})


Pet = Annotated[Union[Cat, Dog], Field(discriminator="kind")]
CASES = {
    "text": (fields(a=str), {"a": "x"}, {"a": 1}),
    "whole-number": (fields(a=int), {"a": 3}, {"a": "x"}),
    "number": (fields(a=float), {"a": 1.5}, {"a": "x"}),
    "truth": (fields(a=bool), {"a": True}, {"a": "x"}),
    "several": (fields(a=str, b=int, c=bool), {"a": "x", "b": 1, "c": False}, {"a": "x", "b": "y", "c": False}),
    "optional": (fields(a=(Optional[str], None)), {"a": None}, {"a": 1}),
    "default": (fields(a=(int, 7), b=str), {"a": 1, "b": "x"}, {"a": 1}),
    "bounds": (fields(a=Annotated[int, Field(ge=1, le=10)]), {"a": 10}, {"a": 11}),
    "above": (fields(a=Annotated[int, Field(gt=0, lt=5)]), {"a": 4}, {"a": 5}),
    "lengths": (fields(a=Annotated[str, Field(min_length=2, max_length=3)]), {"a": "xy"}, {"a": "wxyz"}),
    "pattern": (fields(a=Annotated[str, Field(pattern=r"^[a-z]{3}$")]), {"a": "abc"}, {"a": "ab1"}),
    "list": (fields(a=list[str]), {"a": ["x", "y"]}, {"a": "x"}),
    "short-list": (fields(a=Annotated[list[int], Field(min_length=1, max_length=2)]), {"a": [1]}, {"a": []}),
    "map": (fields(a=dict[str, int]), {"a": {"x": 1}}, {"a": {"x": "y"}}),
    "pair": (fields(a=tuple[int, str]), {"a": [1, "x"]}, {"a": ["x", 1]}),
    "literal": (fields(a=Literal["x", "y"]), {"a": "y"}, {"a": "z"}),
    "constant": (fields(a=Literal["x"]), {"a": "x"}, {"a": "y"}),
    "enum": (fields(a=Color), {"a": "red"}, {"a": "green"}),
    "number-enum": (fields(a=Level), {"a": 2}, {"a": 3}),
    "nested": (fields(a=Address), {"a": {"street": "x", "city": "y"}}, {"a": {"city": "y"}}),
    "nested-list": (fields(a=list[Address]), {"a": [{"street": "x", "city": "y"}]}, {"a": [1]}),
    "described": (fields(a=(Address, Field(description="where"))), {"a": {"street": "x", "city": "y"}}, {"a": 1}),
    "union": (fields(a=Union[int, str]), {"a": "x"}, {"a": []}),
    "discriminated": (fields(a=Pet), {"a": {"kind": "dog", "barks": True}}, {"a": {"kind": "dog", "lives": 1}}),
    "discriminated-list": (fields(a=list[Pet]), {"a": [{"kind": "cat", "lives": 9}]}, {"a": [{"kind": "cow"}]}),
    "closed": (fields(STRICT, a=int), {"a": 1}, {"a": 1, "b": 2}),
    "tree": (Node, {"value": 1, "children": [{"value": 2, "children": []}]}, {"value": 1, "children": [1]}),
    "days": (fields(a=dt.date, b=dt.datetime), {"a": "2026-12-31", "b": "2026-01-31T23:59:59Z"}, {"a": "2026-13-01", "b": "2026-01-31T23:59:59Z"}),
    "addresses": (
        fields(a=EmailStr, b=HttpUrl, c=AnyUrl),
        {"a": "me@example.com", "b": "https://example.com/a?b=1", "c": "http://example.com"},
        {"a": "me", "b": "https://example.com", "c": "http://example.com"},
    ),
    "machines": (
        fields(a=uuid.UUID, b=ipaddress.IPv4Address, c=ipaddress.IPv6Address),
        {"a": "9f8b7c6d-5e4f-4a3b-8c2d-1e0f9a8b7c6d", "b": "127.0.0.1", "c": "2001:db8:0:0:0:0:0:1"},
        {"a": "9f8b", "b": "127.0.0.1", "c": "2001:db8:0:0:0:0:0:1"},
    ),
}
assert len(CASES) == 30

made = {}
for name, (model, valid, invalid) in CASES.items():
    adapter = TypeAdapter(model)
    adapter.validate_json(json.dumps(valid))
    try:
        adapter.validate_json(json.dumps(invalid))
        raise SystemExit(f"{name}: not refused")
    except pydantic.ValidationError:
        pass
    made[name] = {"schema": adapter.json_schema(), "valid": valid, "invalid": invalid}
target = pathlib.Path(__file__).parents[2] / "tests/golden/schemas/pydantic.json"
target.parent.mkdir(exist_ok=True)
target.write_text(json.dumps({"made_by": f"pydantic {pydantic.VERSION}", "cases": made}, indent=1) + "\n")
