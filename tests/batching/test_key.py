"""What keeps items out of each other's calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from pydantic import BaseModel, Field

from batching import Batch, BatchTask, InvalidItem, InvalidOption
from batching.message import key_of


class Row(BaseModel):
    tenant: str = Field(default="none", alias="tenantName")
    number: int = 0


def task(key: Any, model: type[BaseModel] | None = None) -> Any:
    def load(batch: Batch[Any]) -> None: ...

    app = Celery(set_as_current=False)
    options = {"base": BatchTask, "name": "t", "lazy": False, "shared": False}
    return app.task(load, key=key, model=model, **options)


def test_without_a_key_all_items_are_alike() -> None:
    assert key_of(task(None), (1,), {}) is None


def test_a_function_gets_the_arguments_of_the_task() -> None:
    assert key_of(task(lambda name, tenant: tenant), ("a", "acme"), {}) == "acme"
    assert key_of(task(lambda name, tenant: tenant), ("a",), {"tenant": "acme"}) == "acme"


def test_with_a_model_a_function_gets_the_value() -> None:
    keyed = task(lambda row: (row.tenant, row.number % 2), Row)
    assert key_of(keyed, ({"tenantName": "acme", "number": "3"},), {}) == ("acme", 1)
    assert key_of(keyed, (), {"tenantName": "acme"}) == ("acme", 0)


def test_a_name_is_that_of_a_field() -> None:
    assert key_of(task("tenant"), ({"tenant": "acme"},), {}) == "acme"
    assert key_of(task("tenant"), (), {"tenant": "acme", "number": 1}) == "acme"
    assert key_of(task("tenant"), (SimpleNamespace(tenant="acme"),), {}) == "acme"


def test_with_a_model_a_name_knows_the_alias_and_the_default() -> None:
    keyed = task("tenant", Row)
    assert key_of(keyed, ({"tenantName": "acme"},), {}) == "acme"
    assert key_of(keyed, ({"number": 3},), {}) == "none"


def test_a_name_costs_no_reading_of_the_whole_item() -> None:
    keyed = task("tenant", Row)
    assert key_of(keyed, ({"tenantName": "acme", "number": "none"},), {}) == "acme"
    with pytest.raises(InvalidItem):
        key_of(keyed, ({"number": "none"},), {})


@pytest.mark.parametrize(
    ("key", "error"),
    [(lambda row: row["nope"], KeyError), (lambda row: [row], TypeError), ("nope", KeyError)],
)
def test_what_cannot_be_a_key_is_said(key: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        key_of(task(key), ({"tenant": "acme"},), {})


def test_a_name_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"'tenent' is no field of Row, did you mean 'tenant'"):
        task("tenent", Row)
    with pytest.raises(InvalidOption, match="it has tenant, number"):
        task("customer", Row)


@pytest.mark.parametrize("key", ["", 3, ["tenant"]])
def test_a_key_is_a_name_or_a_function(key: object) -> None:
    with pytest.raises(InvalidOption, match="must be the name of a field, a function, or None"):
        task(key)
