"""What was sent is what arrives; else the definition or the call is refused, naming the field."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
)

from batching import Batch, BatchTask, InvalidItem, InvalidOption
from batching.models import plain, read, unsendable


def load(batch: Batch[Any]) -> None:
    raise NotImplementedError


def travelled(value: BaseModel) -> BaseModel:
    """Return what arrives of a model."""
    return read(type(value), json.loads(json.dumps(plain(value, type(value)))))


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Word(StrEnum):
    A = "a"


class Point(BaseModel):
    x: int
    y: float = 0.0


class Named(Point):
    name: str = ""


class Renamed(BaseModel):
    number: int = Field(alias="n")
    where: str = Field(validation_alias=AliasPath("place", 0), serialization_alias="at")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime
    key: UUID
    colour: Colour


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.number


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    number: int


SENT: list[BaseModel] = [
    Renamed.model_validate({"n": 3, "place": ["here"]}),
    Strict(at=datetime(2026, 1, 2, tzinfo=UTC), key=UUID(int=7), colour=Colour.BLUE),
    Closed(number=4),
    Open.model_validate({"number": 1, "more": [1, {"a": None}]}),
]


@pytest.mark.parametrize("value", SENT, ids=lambda value: type(value).__name__)
def test_what_has_a_way_back_arrives_as_it_is(value: BaseModel) -> None:
    assert travelled(value) == value


def test_a_mapping_is_read_by_name_and_by_alias() -> None:
    by_name = {"number": 3, "where": "here"}
    assert read(Renamed, by_name) == read(Renamed, {"n": 3, "place": ["here"]})


class Hidden(BaseModel):
    number: int
    token: SecretStr


class Left(BaseModel):
    number: int
    note: str = Field(default="", exclude=True)


class Outer(BaseModel):
    inner: list[Hidden]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (Hidden, "field 'token' of Hidden is a secret"),
        (Left, "field 'note' of Left is left out of what is sent"),
        (Outer, "field 'inner.token' of Outer is a secret"),
    ],
)
def test_what_the_schema_shows_refuses_the_definition(model: type[BaseModel], problem: str) -> None:
    app = Celery(set_as_current=False)
    with pytest.raises(InvalidOption, match=problem):
        app.task(load, base=BatchTask, model=model, lazy=False, shared=False)


class Shape(BaseModel):
    point: Point = Point(x=1)
    points: list[Point] = []
    value: float = 0.0
    either: str | Word = ""
    code: int = 0

    @field_serializer("code")
    def code_as_text(self, code: int) -> str:
        return f"#{code}" if code else "0"


class Growing(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def more(cls, number: int) -> int:
        return number + 1


REFUSED: list[tuple[BaseModel, str]] = [
    (Shape(point=Named(x=1, name="n")), "point"),
    (Shape(points=[Point(x=1), Named(x=2)]), "points.1"),
    (Shape(value=math.nan), "value"),
    (Shape(either=Word.A), "either"),
    (Shape(code=5), "code"),
    (Growing(number=1), "number"),
]


@pytest.mark.parametrize(("value", "field"), REFUSED, ids=lambda value: str(value)[:20])
def test_what_only_a_value_shows_refuses_the_call_and_names_the_field(
    value: BaseModel, field: str
) -> None:
    app = Celery(set_as_current=False, broker="memory://")
    task = app.task(load, base=BatchTask, model=type(value), lazy=False, shared=False)
    with pytest.raises(InvalidItem) as refused:
        task.delay(value)
    assert refused.value.field == field


#: Types of fields, and their values.
TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-(2**60), 2**60)),
    (float, st.floats()),
    (bool, st.booleans()),
    (str, st.text(max_size=5)),
    (bytes, st.binary(max_size=5)),
    (Decimal, st.decimals(allow_nan=False, places=3, min_value=-99, max_value=99)),
    (datetime, st.datetimes()),
    (date, st.dates()),
    (timedelta, st.timedeltas(timedelta(-99), timedelta(99))),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Point, st.builds(Point, x=st.integers(0, 9)) | st.builds(Named, x=st.integers(0, 9))),
    (int | str, st.integers(0, 9) | st.text("019", max_size=2)),
    (str | int | None, st.integers(0, 9) | st.text("01a", max_size=2) | st.none()),
    (list[int], st.lists(st.integers(0, 9), max_size=3)),
    (dict[str, float], st.dictionaries(st.text("ab", max_size=2), st.floats(), max_size=2)),
    (tuple[int, str], st.tuples(st.integers(0, 9), st.text("ab", max_size=2))),
    (set[int], st.sets(st.integers(0, 9), max_size=3)),
    (Any, st.integers() | st.tuples(st.integers()) | st.dates()),
]

fields = st.lists(st.sampled_from(TYPES), min_size=1, max_size=4)


@given(fields, st.booleans(), st.booleans(), st.data())
def test_a_zoo_of_models_arrives_or_is_refused_by_field(
    chosen: list[tuple[Any, st.SearchStrategy[Any]]],
    strict: bool,
    aliased: bool,
    data: st.DataObject,
) -> None:
    definition: dict[str, Any] = {
        f"f{n}": (kind, Field(alias=f"Alias{n}") if aliased else ...)
        for n, (kind, _) in enumerate(chosen)
    }
    model = create_model("Zoo", __config__=ConfigDict(strict=strict), **definition)
    values = {f"f{n}": data.draw(strategy) for n, (_, strategy) in enumerate(chosen)}
    value = model.model_construct(**values)
    assert unsendable(model) is None
    if (field := refused_field(value)) is not None:
        assert field.split(".")[0] in values
    else:
        assert same(vars(travelled(value)), vars(value))


def refused_field(value: BaseModel) -> str | None:
    try:
        plain(value, type(value))
    except InvalidItem as refused:
        return refused.field
    return None


def same(one: Any, other: Any) -> bool:
    """Return whether two values are alike, in their types as well."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other
