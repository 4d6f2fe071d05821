"""Groups and chords whole or not at all: a bound never cuts one in the middle.

Celery publishes the members of a group one by one. On an app whose queues have bounds, the members
(and for a chord whatever its header needs) are gathered first. Then

- members for one queue and priority, at most `CHUNK` of them and 4 MB, go in one script call;
- others in two steps: look whether every queue has room for its share, then push. Producers that
  look at the same moment may together exceed a bound by one group, which the ledger counts as
  overshoot; a group is never cut.

Refused, ``apply_async`` raises `QueueFull` and nothing was published. The policies that drop what
is new take the whole group or drop it; ``drop_oldest`` makes room for as much of it as ever fits.
Celery's signals and ``task-sent`` events come while the group is gathered. Canvas classes belong to
no app, so `extend_canvas` wraps their ``apply_async`` for the process; apps without a table do not
notice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery import canvas

from routing import upstream
from routing.message.eta import Delay
from routing.message.exemption import follows_from_accepted, was_accepted
from routing.publish.attempt import ensure
from routing.publish.bulk import producer_for
from routing.publish.signatures import check_signatures
from routing.redis.bounds import Terms
from routing.redis.pieces import pieces_of
from routing.redis.values import Pushed
from routing.topology.model import Topology
from routing.transport.claim import Claim
from routing.transport.gathering import Destination, Gathering, current, gathering
from routing.transport.outage import waiting_of
from routing.transport.overflow import Overflow
from routing.transport.runtime import topology_of

#: Messages in one call: a few milliseconds of the server.
CHUNK = 3000

_MARK = "__celeriac_whole__"


def extend_canvas() -> None:
    """Let groups and chords be published whole; extending twice is safe."""
    for kind in (canvas.group, upstream.CHORD.of(canvas)):
        if not hasattr(kind.apply_async, _MARK):
            kind.apply_async = _published_whole(kind.apply_async)


def _published_whole(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def apply_async(self: Any, *args: Any, **options: Any) -> Any:
        app = self.app
        # A group inside of a group belongs to the outer one.
        outer = current()
        is_inner = outer is not None and not outer.exempt_only
        must_arrive = was_accepted()
        if topology_of(app) is not None and not follows_from_accepted():
            # Before a member of it is published.
            check_signatures(app.amqp.router, self, *_as_called(self, *args, **options))
        has_bounds = _has_bounds(topology_of(app))
        if is_inner or app.conf.task_always_eager or not (has_bounds or must_arrive):
            return stock(self, *args, **options)

        def gather() -> tuple[Gathering, Any]:
            with gathering() as gathered:
                return gathered, stock(self, *args, **options)

        # It connects and declares, so the broker may be away already.
        waiting = waiting_of(app)
        gathered, result = waiting.until_taken("the broker", gather) if must_arrive else gather()
        if outer is None or not all(map(outer.takes, gathered.destinations)):
            publication = Publication(app, gathered, options)
            if must_arrive:
                waiting.until_taken("the broker", publication.publish)
            else:
                publication.publish()
            return result
        for destination, payloads in gathered.destinations.items():
            for payload in payloads:
                outer.add(destination, payload)
        return result

    setattr(apply_async, _MARK, True)
    return apply_async


def _as_called(
    signature: Any, args: Any = None, kwargs: Any = None, **options: Any
) -> Iterator[Any]:
    """Yield what a call adds to a group or chord: options, for each member too, or a body."""
    yield {"task": signature["task"], "options": options}
    yield kwargs.get("body") if isinstance(kwargs, Mapping) else None
    members = signature.tasks if isinstance(signature, canvas.group) else None
    if isinstance(members, (list, tuple)):
        given = {name: value for name, value in options.items() if value is not None}
        for member in members:
            yield {"task": member["task"], "options": {**(member.get("options") or {}), **given}}


def _has_bounds(topology: Topology | None) -> bool:
    return topology is not None and any(
        queue.max_length or queue.max_bytes or queue.max_delayed
        for queue in topology.queues.values()
    )


class Publication:
    """Publishes gathered messages, all or none; after a lost connection it goes on where it was.

    Arguments:
        options: publishing options; ``retry``, ``retry_policy`` and what chooses the connection.
    """

    def __init__(self, app: Any, gathered: Gathering, options: Mapping[str, Any]) -> None:
        self._app = app
        self._options = options
        self._destinations = gathered.destinations
        self._senders = gathered.senders
        self._terms: dict[tuple[str, bool], Terms] = {}
        self._claims: list[Claim] = []
        self._calls = [
            (destination, piece)
            for destination, payloads in gathered.destinations.items()
            for piece in pieces_of(payloads, at_most=CHUNK)
        ]

    def publish(self) -> None:
        """Publish what is left.

        Raises:
            QueueFull: a queue has no room for its share; nothing was published.
            BrokerUnreachable: the broker is away.
        """
        if self.is_over:
            return
        conf = self._app.conf
        policy = {
            "retry": self._options.get("retry", conf.task_publish_retry),
            "retry_policy": self._options.get("retry_policy") or conf.task_publish_retry_policy,
        }
        with producer_for(self._app, self._options) as producer:
            ensure(producer, lambda: self._send(producer.channel), policy)

    def skip(self) -> set[str]:
        """Leave out what was refused just now; return which tasks have sent messages that way."""
        refused = self._calls[0][0]
        self._calls = [call for call in self._calls if call[0] != refused]
        return set(self._senders[refused])

    @property
    def is_over(self) -> bool:
        """Whether nothing is left."""
        return not self._calls

    def _send(self, channel: Any) -> None:
        if len(self._calls) == 1 and not self._calls[0][0].exempt:
            destination, payloads = self._calls[0]
            overflow: Overflow = channel.overflow(destination)
            pushed = overflow.push(payloads, "whole")
            if pushed.accepted < len(payloads):
                raise overflow.full(pushed, len(payloads), together=len(payloads))
            return
        if not self._terms:
            shares = {
                (destination.queue, destination.delayed)
                for destination in self._destinations
                if not destination.exempt
            }
            self._terms = {share: self._find_terms(channel, *share) for share in shares}
        while self._calls:
            destination, payloads = self._calls[0]
            terms = (
                "exempt"
                if destination.exempt
                else self._terms[destination.queue, destination.delayed]
            )
            overflow = channel.overflow(destination)
            pushed = overflow.push(payloads, terms)
            if pushed.drains:  # since it was asked
                raise overflow.full(pushed, len(payloads), together=len(payloads))
            self._calls.pop(0)
        self._let_go()

    def _let_go(self) -> None:
        while self._claims:
            self._claims.pop().end()

    def _find_terms(self, channel: Any, queue: str, delayed: bool) -> Terms:
        """Return on which terms a queue takes its share, of what waits or of what is delayed.

        Raises:
            QueueFull: it does not.
        """
        overflow: Overflow = channel.overflow(Destination(queue=queue, delayed=delayed))
        policy, payloads = overflow.config.overflow, list(self._share(queue, delayed))
        found = self._look(overflow, len(payloads))
        if policy == "drop_oldest" or not overflow.bounds.are_set:
            return ""
        patience, claim = overflow.patience(), overflow.claim(payloads)
        self._claims.append(claim)
        while not overflow.fits(found, payloads):
            if policy not in ("reject", "block"):
                return "none"
            empty = Pushed(0, 0, found.limit)
            if not overflow.fits(empty, payloads) or not patience.wait():
                self._let_go()
                refused = overflow.push(payloads, "none")
                raise overflow.full(refused, len(payloads), together=len(payloads))
            patience.tell(functools.partial(overflow.full, found, 1))
            claim.renew()
            found = self._look(overflow, len(payloads), claim.who)
        return "exempt"

    @staticmethod
    def _look(overflow: Overflow, count: int, who: str = "") -> Pushed:
        if (found := overflow.push_once((), who=who)).drains:
            raise overflow.full(found, count, together=count)
        return found

    def _share(self, queue: str, delayed: bool) -> Iterator[str | Delay]:
        for destination, payloads in self._destinations.items():
            if (destination.queue, destination.delayed) == (
                queue,
                delayed,
            ) and not destination.exempt:
                yield from payloads
