"""Every private name of Celery, kombu, billiard and redis-py that this package leans on.

Public names are enough for most; these are the rest, each with where it is and why. Nobody else
writes them: whoever needs one asks `Private.of`, or puts something else there with `Private.put`.
Public ones in whose place we put something else are listed in `REBOUND`.
Private methods that a class of ours overrides, and attributes that it inherits, stay in its room
and are listed in `INHERITED`. `check` says in one sentence what is missing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from operator import attrgetter
from typing import Any

from routing.errors import IncompatibleVersion

#: Package -> the oldest version that has these names.
OLDEST = {"celery": (5, 7), "kombu": (5, 7)}


@dataclass(frozen=True, slots=True)
class Private:
    """A private name.

    Attributes:
        owner: where it is: a module, or ``module:Class``.
        name: the name.
        why: what it is needed for.
        is_set_later: it is no attribute of the class, but of each instance.
        of: returns what an object has under this name.
    """

    owner: str
    name: str
    why: str
    is_set_later: bool = False
    of: Callable[[Any], Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Asked for on every message: the quickest way there is.
        object.__setattr__(self, "of", attrgetter(self.name))

    def find(self, holder: Any, default: Any = None) -> Any:
        """Return what an object has under this name, the default where it has nothing."""
        return getattr(holder, self.name, default)

    def put(self, holder: Any, value: Any) -> None:
        """Put something else there."""
        setattr(holder, self.name, value)

    def is_missing(self) -> bool:
        """Return whether the installed version does not have it; its module is imported."""
        module, _, path = self.owner.partition(":")
        owner: Any = importlib.import_module(module)
        for part in path.split(".") if path else ():
            owner = getattr(owner, part, None)
        return owner is None or not (self.is_set_later or hasattr(owner, self.name))


_APP = "celery.app.base:Celery"
_TASK = "celery.app.task:Task"
_CHANNEL = "kombu.transport.virtual.base:Channel"
_TRANSPORT = "kombu.transport.virtual.base:Transport"
_BACKEND = "celery.backends.base:Backend"
_ASYNPOOL = "celery.concurrency.asynpool:AsynPool"
_ASYNPOOL_MODULE = "celery.concurrency.asynpool"
_POLLER = "kombu.transport.redis:MultiChannelPoller"
_RESULTS = "celery.concurrency.asynpool:ResultHandler"
_JOB = "billiard.pool:ApplyResult"

# -- apps and tasks

APP_POOL = Private(_APP, "_pool", "connections made before install do not know the queue table")
APP_TASKS = Private(_APP, "_tasks", "looks at tasks without finalizing the app", True)
APP_BACKEND = Private(_APP, "_backend", "a backend that was made before its worker started", True)
GET_BACKEND = Private(_APP, "_get_backend", "backends of all threads wait for their servers")
TASK_APP = Private(_TASK, "_get_app", "the app of a task that is not bound yet")
EXEC_OPTIONS = Private(_TASK, "_get_exec_options", "what apply_async merges into a call's options")
DUMP_MODELS = Private(_TASK, "_dump_pydantic_arguments", "arguments of pydantic tasks", True)
EVENT_DISPATCHER = Private("celery.app.amqp:AMQP", "_event_dispatcher", "task-sent of bulk calls")
RETRY_PUBLISH = Private("celery.app.amqp:AMQP", "_retry_publish", "links are sent as Celery does")
IS_CALLBACK = Private(
    "celery.app.amqp", "_callback_publish_retry", "what a bound must not refuse is told by it"
)
TASK_STACK = Private("celery._state", "_task_stack", "a task is the current one while it is ended")
CURRENT_OBJECT = Private("celery.local:Proxy", "_get_current_object", "the object behind a proxy")
CHORD = Private("celery.canvas", "_chord", "the class of chords: they are published whole")
INSPECT_REQUEST = Private(
    "celery.app.control:Inspect", "_request", "asks for a command that is not Celery's"
)

# -- results

RESULT_META = Private(_BACKEND, "_get_result_meta", "states are written as Celery writes them")
REDIS_SET = Private(
    "celery.backends.redis:RedisBackend", "_set", "whether results are stored in Celery's own way"
)
REDIS_STORE = Private(
    "celery.backends.redis:RedisBackend", "_store_result", "whether they are, likewise"
)
LARGEST_VALUE = Private(
    "celery.backends.redis:RedisBackend", "_MAX_STR_VALUE_SIZE", "a result that Redis cannot hold"
)

# -- messages and channels

JSON_ENCODERS = Private(
    "kombu.serialization:SerializerRegistry", "_encoders", "whether JSON is kombu's own", True
)
JSON_DECODERS = Private(
    "kombu.serialization:SerializerRegistry", "_decoders", "whether JSON is kombu's own", True
)
CONNECTION_INFO = Private(
    "kombu.connection:Connection", "_info", "what a pool's connections are made from"
)
PREPARE = Private("kombu.messaging:Producer", "_prepare", "the body of one item of a bulk call")
PRIORITY = Private(_CHANNEL, "_get_message_priority", "which ready list a message goes to")
AUGMENT = Private(_CHANNEL, "_inplace_augment_message", "the properties of a published message")
SIZE = Private(_CHANNEL, "_size", "how many messages wait in a queue that is not ours")
DELIVER = Private(_TRANSPORT, "_deliver", "hands over what is consumed without acknowledgement")
CONSUMERS = Private(_TRANSPORT, "_callbacks", "who takes the messages of a queue", True)

IN_POLL = Private("kombu.transport.redis:Channel", "_in_poll", "whether a command is out", True)
SENT_AT = Private("kombu.transport.redis:Channel", "_brpop_sent_at", "since when it is", True)

# -- pools

PROCESS_POOL = Private("celery.concurrency.prefork:TaskPool", "_pool", "the pool of billiard", True)
JOBS = Private("billiard.pool:Pool", "_cache", "what has been handed over and not answered", True)
ACTIVE_WRITERS = Private(_ASYNPOOL, "_active_writers", "payloads that are half written", True)
WAITING_TO_START = Private(_ASYNPOOL, "_waiting_to_start", "processes that never came up", True)
TRACK_PROCESS = Private(_ASYNPOOL, "_track_child_process", "one that has ended is not watched")
UNTRACK_PROCESS = Private(_ASYNPOOL, "_untrack_child_process", "one that ends is replaced at once")
PROCESS_EXIT = Private(_ASYNPOOL, "_event_process_exit", "one that ends is replaced at once")
STOP_TASK_HANDLER = Private(_ASYNPOOL, "_stop_task_handler", "a full pipe hangs no shutdown")
FLUSH_WRITER = Private(_ASYNPOOL, "_flush_writer", "half written payloads are completed")
RESULT_HANDLER = Private("billiard.pool:Pool", "_result_handler", "reads answers", True)
READ_ANSWER = Private(_RESULTS, "_recv_message", "answers that cannot be read end their job")
FINISH_ANSWER = Private(_RESULTS, "_finish_partial_read", "half read answers are completed", True)
ANSWERS_HUB = Private(_RESULTS, "_hub", "half read answers are completed", True)
JOB_NUMBER = Private(_JOB, "_job", "the job that an unreadable answer belongs to", True)
JOB_PID = Private(_JOB, "_worker_pid", "the process that runs a job", True)
JOB_PROCESS = Private(_JOB, "_write_to", "the process that a payload is written to", True)
JOB_WRITER = Private(_JOB, "_writer", "what writes a payload", True)
PIPE_WRITER = Private("billiard.queues:_SimpleQueue", "_writer", "a process's pipe", True)
IS_ALIVE = Private("billiard.process:BaseProcess", "_is_alive", "a process that was told to end")
SELECT = Private("celery.concurrency.asynpool", "_select", "whether a pipe has room")
AFTER_GREENLET = Private(
    "celery.concurrency.gevent:TaskPool", "_cleanup_after_job_finish", "greenlets are let go"
)

# -- requests

ETA_TIMER = Private(
    "celery.worker.request:Request", "_eta_timer_entry", "a revoked item leaves the timer"
)

SCHEDULE_BUCKET = Private(
    "celery.worker.consumer.consumer:Consumer",
    "_schedule_bucket_request",
    "what waits for its turn at a rate limit follows another limit",
)

CHORD_ZSET = Private(
    "celery.backends.redis:RedisBackend", "_chord_zset", "it is cached for the client that it had"
)
SENTINEL = Private(_ASYNPOOL_MODULE, "_sentinel_poll", "a process whose end was noticed", True)
WAKER = Private("kombu.asynchronous.hub:Hub", "_waker", "a signal ends the loop's poll", True)
SOCKET = Private("redis.connection:AbstractConnection", "_sock", "a reply that nobody read", True)

#: Timers of kombu's own cycle, which it leaves in the loop when the connection is lost.
CYCLE_TIMERS = tuple(
    Private(_POLLER, name, "kombu leaves it behind a lost connection", True)
    for name in (
        "_restore_messages_tref", "_subclient_health_tref", "_brpop_health_tref", "_reauth_tref",
        "_binding_expiry_tref",
    )
)  # fmt: skip

#: Public names in whose place we put something else: owner -> {name: why}.
REBOUND: dict[str, dict[str, str]] = {
    "celery.worker.consumer.consumer:Consumer": {
        "cancel_active_requests": "a cold shutdown cuts when the loop has ended",
        "create_task_handler": "no promise between a message and its strategy",
        "loop": "a cold shutdown cuts when the loop has ended",
        "on_decode_error": "what is refused becomes a dead letter",
        "on_invalid_task": "what is refused becomes a dead letter",
        "on_task_request": "requests go to the dispatcher",
        "on_unknown_message": "what is refused becomes a dead letter",
        "on_unknown_task": "what is refused becomes a dead letter",
        "_schedule_bucket_request": "what waits for its rate is nothing that a slot could start",
        "reset_rate_limits": "another rate limit holds for what waits, too",
    },
    "celery.worker.worker:WorkController": {
        "terminate": "a cold shutdown cuts when the loop has ended",
        "wait_for_soft_shutdown": "a soft shutdown says goodbye when it begins",
    },
    "celery.concurrency.base:BasePool": {
        "flush": "what was handed over survives a reconnect",
        "on_apply": "slots are counted",
        "stop": "a cold shutdown cuts when the loop has ended",
    },
    "kombu.transport.virtual.base:QoS": {"can_consume": "the credit of each queue decides"},
    "celery.canvas:group": {"apply_async": "published whole or not at all"},
    "celery.canvas:_chord": {"apply_async": "published whole or not at all"},
}

#: Those of them that each instance sets.
_REBOUND_LATER = frozenset({"loop", "on_task_request"})

#: Private names that our classes override or inherit: owner -> names.
INHERITED: dict[str, tuple[str, ...]] = {
    "kombu.transport.redis:Channel": (
        "_basic_cancel", "_brpop_read", "_brpop_start", "_connparams", "_delete",
        "_expires", "_fanout_queues", "_flush_brpop_reauth", "_get", "_get_pool",
        "_maybe_update_queues_expire", "_new_queue", "_put", "_queue_bind", "_restore",
        "_restore_at_beginning", "_size",
    ),
    "kombu.transport.virtual.base:Channel": ("_get_message_priority", "_purge"),
    "kombu.transport.redis:SentinelChannel": ("_sentinel_managed_pool",),
    "kombu.message:Message": ("_decode", "_state"),
    "kombu.transport.virtual.base:QoS": ("_on_collect",),
    "kombu.messaging:Producer": ("_publish",),
    "redis.connection:AbstractConnection": ("_connect",),
    "celery.app.amqp:AMQP": ("_create_task_sender", "_retry_publish"),
    "celery.backends.base:Backend": ("_call_task_errbacks", "_sleep"),
    "celery.backends.redis:RedisBackend": ("_get_client", "_store_result"),
    "celery.worker.request:Request": (
        "_already_cancelled", "_already_revoked", "_announce_cancelled", "_announce_revoked",
        "_context", "_eta", "_expires", "_retry_worker_lost", "_success_was_stored",
    ),
}  # fmt: skip

#: Those of them that each instance sets.
_SET_LATER = frozenset(
    {"_connect", "_eta", "_expires", "_fanout_queues", "_state"} | {"_on_collect"}
)


def names() -> Iterator[Private]:
    """Yield every private name, those of `INHERITED` too."""
    for found in list(globals().values()):
        if isinstance(found, Private):
            yield found
    yield from CYCLE_TIMERS
    for owner, reasons in REBOUND.items():
        for name, why in reasons.items():
            yield Private(owner, name, why, name in _REBOUND_LATER)
    for owner, inherited in INHERITED.items():
        for name in inherited:
            yield Private(
                owner, name, "a class of ours overrides or inherits it", name in _SET_LATER
            )


def check_versions() -> None:
    """Refuse versions of Celery and kombu that are too old; nothing of them is imported.

    Raises:
        IncompatibleVersion: in one sentence what is needed and what is there.
    """
    for package, oldest in OLDEST.items():
        found = version(package)
        numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
        if numbers < oldest:
            wanted = ".".join(map(str, oldest))
            raise IncompatibleVersion(
                f"celeriac needs {package.capitalize()} {wanted} or later, this is {found}"
            )


def check() -> None:
    """Refuse a Celery and a kombu that lack a name that this package needs.

    Only what has been imported is looked at: in a worker, the pool that it has.

    Raises:
        IncompatibleVersion: in one sentence what is needed and what is there.
    """
    for private in names():
        module = private.owner.partition(":")[0]
        if module in sys.modules and private.is_missing():
            raise IncompatibleVersion(
                f"celeriac needs {private.owner}.{private.name}, which Celery "
                f"{version('celery')} with kombu {version('kombu')} does not have"
            )
