"""What an answer of the server means, and how long to wait after it."""

from __future__ import annotations

import pytest
from amqp.exceptions import RecoverableConnectionError
from kombu.exceptions import OperationalError
from redis import exceptions
from redis._parsers.base import BaseParser

from routing.redis.backoff import FIRST_SECONDS, LONGEST_SECONDS, Backoff
from routing.redis.faults import Fault, Sorting, answer_of, fault_of, is_passing, sorted_error
from routing.transport.refusals import patiently

REFUSALS = [
    "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "LOADING Valkey is loading the dataset in memory",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN Hash slot not served",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "READONLY You can't write against a read only replica.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "UNKILLABLE Sorry the script already executed write commands",
    "EXECABORT Transaction discarded because of: BUSY Redis is busy running a script.",
    "ERR Error running script (call to f_1): @user_script:3: -OOM command not allowed",
]


@pytest.mark.parametrize("text", REFUSALS, ids=lambda text: text.split()[0])
def test_what_the_server_will_not_do_now_is_a_refusal_however_the_client_raises_it(
    text: str,
) -> None:
    error = BaseParser.parse_error(text)
    assert fault_of(error) is Fault.REFUSED
    assert is_passing(error)
    raised = sorted_error(error)
    assert fault_of(raised) is Fault.REFUSED
    assert isinstance(raised, exceptions.ConnectionError)


@pytest.mark.parametrize("text", ["WRONGTYPE Operation against a key", "BUSYKEY Target key name"])
def test_what_will_never_succeed_is_a_bug(text: str) -> None:
    error = BaseParser.parse_error(text)
    assert fault_of(error) is Fault.BUG
    assert sorted_error(error) is error


def test_a_channel_that_kombu_has_closed_is_a_lost_connection() -> None:
    wrapper = OperationalError("channel disconnected")
    wrapper.__cause__ = RecoverableConnectionError("channel disconnected")
    assert fault_of(wrapper) is Fault.LOST


def test_a_wrapped_error_means_what_it_was_raised_from() -> None:
    wrapper = RuntimeError("wrapped")
    wrapper.__cause__ = exceptions.TimeoutError("silent")
    assert fault_of(wrapper) is Fault.LOST


def test_what_the_server_said_keeps_its_code() -> None:
    for text in REFUSALS[:6]:
        assert answer_of(BaseParser.parse_error(text)) == text


def test_a_connection_raises_refusals_only_for_refusals() -> None:
    class Answers:
        def read_response(self) -> None:
            raise BaseParser.parse_error("NOSCRIPT No matching script.")

    class Connection(Sorting, Answers):
        pass

    with pytest.raises(exceptions.NoScriptError):
        Connection().read_response()


def test_waits_double_up_to_a_longest_one_and_the_outage_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    patience, error = Backoff("settle"), exceptions.ResponseError(REFUSALS[0])
    waits = []
    for _ in range(7):
        patience.refused(error)
        waits.append(patience.seconds_left)
        patience.passed()
        assert patience.seconds_left == 0
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0], abs=0.05)
    assert (FIRST_SECONDS, LONGEST_SECONDS) == (0.1, 2.0)
    assert [record.event for record in caplog.records] == ["broker_refused"]  # type: ignore[attr-defined]


def test_a_worker_loop_waits_for_no_refusal_and_takes_it_for_a_lost_connection() -> None:
    calls = []

    def refused() -> None:
        calls.append(1)
        error = exceptions.ResponseError(REFUSALS[0])
        raise sorted_error(error) from error

    with pytest.raises(exceptions.ConnectionError, match="BUSY"):
        patiently(refused, is_worker=True, is_push=True)
    assert len(calls) == 1


def test_a_producer_waits_for_a_refusal_to_pass() -> None:
    answers = iter([exceptions.ResponseError(REFUSALS[0]), None])

    def call() -> str:
        if (error := next(answers)) is not None:
            raise sorted_error(error) from error
        return "done"

    assert patiently(call, is_worker=False) == "done"
