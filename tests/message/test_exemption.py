from __future__ import annotations

from typing import Any

import pytest

from routing.message.exemption import accepted_before, is_exempt

NEW: dict[str, Any] = {"id": "an-id", "task": "t", "retries": 0, "replaced_task_nesting": 0}


@pytest.mark.parametrize("field", ["retries", "replaced_task_nesting"])
def test_a_retry_and_a_replacement_were_accepted_before(field: str) -> None:
    assert not is_exempt(NEW)
    assert is_exempt({**NEW, field: 1})


def test_what_follows_from_accepted_work_was_accepted_before() -> None:
    with accepted_before():
        assert is_exempt(NEW)
    assert not is_exempt(NEW)
