"""What Celery's code can work with gets in, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chord, group
from celery.exceptions import InvalidTaskError
from hypothesis import given
from hypothesis import strategies as st

from routing.message.validation import check_message

HEADERS: dict[str, Any] = {"id": "an-id", "task": "shop.export"}
BODY: tuple[list[Any], dict[str, Any], None] = ([1], {}, None)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    ["id", "task", "timelimit", "retries", "group", "stamps", "chain", "chord", "callbacks", "x"]
)


def admitted(headers: Any = HEADERS, content: Any = BODY, encoding: Any = "utf-8") -> bool:
    try:
        check_message(headers, content, encoding)
    except InvalidTaskError:
        return False
    return True


@given(st.dictionaries(names, json_values), json_values)
def test_whatever_is_sent_is_admitted_or_refused_and_nothing_else(
    headers: dict[str, Any], content: Any
) -> None:
    admitted(HEADERS | headers, content)
    admitted(HEADERS | headers, [[], {}, content])


@pytest.mark.parametrize("options", [{}, {"countdown": 5, "expires": 9, "time_limit": 2.5}])
def test_what_celery_itself_sends_is_admitted(options: dict[str, Any]) -> None:
    app = Celery("shop", set_as_current=False)
    add = app.signature("add")
    sent = app.amqp.as_task_v2(
        "an-id",
        "add",
        (1, 2),
        callbacks=[add, "by.name"],
        errbacks=[add],
        chain=[add, group(add, add)],
        chord=chord([add], add),
        **options,
    )
    assert admitted(sent.headers, sent.body)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("id", None, "id must be a string, got a NoneType"),
        ("retries", True, "retries must be a whole number, got a bool"),
        ("timelimit", ["x", 1], "timelimit must be seconds, at most 1e+09, or null, got a str"),
        ("chain", [5], "chain must be signatures, got a int"),
    ],
)
def test_the_refusal_names_the_field(field: str, value: Any, problem: str) -> None:
    with pytest.raises(InvalidTaskError, match=problem.replace("+", r"\+")):
        check_message(HEADERS | {field: value}, BODY, "utf-8")


def test_headers_that_are_nested_too_deep_to_travel_are_refused() -> None:
    nested: Any = []
    for _ in range(50):
        nested = [{"a": nested}]
    assert admitted(HEADERS | {"own": nested[0]["a"]})
    assert not admitted(HEADERS | {"own": [nested]})
