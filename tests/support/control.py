"""A server as the control socket sees it: a queue in a dict, that behaves."""

import contextlib
from collections.abc import Callable

from mta.core.ids import EvpId, MsgId, evpid, msgid_of, show_evpid
from mta.core.limitchange import limit_rows, parse_change, put_limit, read_limit
from mta.core.limits import Limits
from mta.core.metrics import METRICS
from mta.core.stimuli import (
    RemoveRequested,
    ScheduleRequested,
    SuspendRequested,
    UnsuspendRequested,
)
from mta.trace import Tracer

NOW = 1_700_000_000.0


class FakeTarget:
    """Answers as the server does, from what a test put there."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.queue: dict[int, dict[str, object]] = {}
        self.messages: dict[int, bytes] = {}
        self.running = {"mta": True, "smtp": True}
        self.resting = {"127.0.0.9"}
        self.is_verbose = False
        self.tracer = tracer
        self.values: dict[str, int | float] = dict.fromkeys(METRICS, 0)
        self.fault: Exception | None = None
        self.alone: set[tuple[str, str, str]] = set()
        self.hidden: set[int] = set()
        """Envelopes that only `discover` finds."""
        self.limits = Limits()
        self.is_profiled = False
        self.clock = NOW
        self.pages = 0

    def put(self, message: int, recipients: int = 1, **fields: object) -> None:
        """Put a message with so many recipients into the queue."""
        self.messages.setdefault(message, b"Subject: hello\r\n\r\nBody\r\n")
        for number in range(1, recipients + 1):
            one = evpid(MsgId(message), number)
            self.queue[one] = {
                "evpid": show_evpid(one),
                "state": "pending",
                "flags": [],
                "sender": "alice@sender.test",
                "rcpt": f"user{number}@flaky.test",
                "domain": "flaky.test",
                "created_at": NOW - 3725.0,
                "expires_at": NOW + 345_600.0,
                "due_at": NOW + 72.0,
                "attempts": 3,
                "last_status": "450 4.2.1 Mailbox busy",
                **fields,
            }

    def status(self):
        return {
            **{name: "running" if on else "paused" for name, on in self.running.items()},
            "version": "0.1.0",
            "pid": 4242,
        }

    def stats(self):
        if self.fault:
            raise self.fault
        self.values["scheduler.envelope"] = len(self.queue)
        return {"uptime": 93_784.0, **self.values}

    def queue_rows(self, msgid, after, limit):
        if self.fault:
            raise self.fault
        self.pages += 1
        chosen = (
            row
            for one, row in sorted(self.queue.items())
            if (after is None or one > after) and (msgid is None or msgid_of(EvpId(one)) == msgid)
        )
        return [row for row, _ in zip(chosen, range(limit), strict=False)]

    def envelope(self, one):
        return self.queue.get(one)

    def message(self, message):
        return self.messages.get(message)

    def relays(self):
        return [
            {
                "domain": "flaky.test",
                "state": "dead,onhold",
                "tasks": 50,
                "running": 0,
                "held": 1234,
                "connections": 0,
                "window": 5,
                "dead_until": NOW + 45.0,
                "wait": ["MX"],
                "connectors": [
                    {
                        "source": "[]",
                        "connections": 0,
                        "last_connect_at": None,
                        "flags": ["ERROR_BLOCKED"],
                    }
                ],
                "last_status": "451 4.4.1 Connection refused",
            },
            {
                "domain": "steady.test",
                "state": "ready",
                "tasks": 2,
                "running": 5,
                "held": 0,
                "connections": 5,
                "window": 5,
                "dead_until": None,
                "last_status": None,
            },
        ]

    def routes(self):
        return [
            {
                "source": "",
                "address": "127.0.0.9",
                "state": "disabled",
                "connections": 0,
                "penalty": 3,
                "enabled_at": NOW + 100.0,
            }
        ]

    def hosts(self):
        return [
            {
                "address": "127.0.0.9",
                "name": "mx1.flaky.test",
                "connections": 0,
                "last_connect_at": NOW - 9.0,
            }
        ]

    def sessions(self):
        return []

    def request(self, stimulus):
        if self.fault:
            raise self.fault
        which = stimulus.which
        found = [
            one
            for one in self.queue
            if which.evpid in (None, one) and which.msgid in (None, msgid_of(EvpId(one)))
        ]
        for one in found:
            match stimulus:
                case ScheduleRequested():
                    self.queue[one]["due_at"] = NOW
                case RemoveRequested():
                    del self.queue[one]
                case SuspendRequested():
                    self.queue[one]["state"] = "suspended"
                case UnsuspendRequested():
                    self.queue[one]["state"] = "pending"
        return len(found)

    def pause(self, what: str, only: str = "", source: str = "") -> None:
        if only:
            self.alone.add((what, only, source))
        else:
            self.running[what] = False

    def resume(self, what: str, only: str = "", source: str = "") -> None:
        if only:
            self.alone.discard((what, only, source))
        else:
            self.running[what] = True

    def paused(self):
        return [
            {"agent": agent, "only": only, "source": source or None}
            for agent, only, source in sorted(self.alone)
        ]

    def users(self):
        return [{"user": "alice", "state": "onhold", "pending": 50, "running": 7, "held": 943}]

    def hoststats(self):
        return [
            {
                "domain": "flaky.test",
                "at": NOW - 60,
                "seconds": 0.0123,
                "transactions": 4,
                "last_status": "450 4.2.1 Mailbox busy",
            }
        ]

    def top(self):
        self.values["smtp.message"] += 50
        self.clock += 1.0
        return {
            "t": self.clock,
            "hostname": "mx.test",
            "stats": dict(self.stats()),
            "memory": [
                {"agent": "scheduler", "what": "envelopes, slim", "count": 9, "bytes": 2048}
            ],
            "slowest": [
                {
                    "domain": f"d{number}.test",
                    "dead": number == 0,
                    "queued": 5,
                    "held": 1234,
                    "connections": 2,
                    "seconds": None if number == 0 else 1.5,
                    "last_status": "451 4.4.1 Connection\x1b refused",
                }
                for number in range(20)
            ],
        }

    def ages(self):
        for row in self.queue.values():
            yield row["domain"], row["created_at"]

    def now(self):
        return NOW

    def discover(self, which):
        return sum(which.msgid == msgid_of(EvpId(one)) for one in self.hidden)

    def limit_rows(self, pattern):
        return list(limit_rows(self.limits, pattern))

    def set_limit(self, assignment):
        key, value = parse_change(self.limits, assignment)
        before = read_limit(self.limits, key)
        put_limit(self.limits, key, value)
        return f"{key} {before} -> {value}"

    def profile(self, on: bool) -> None:
        self.is_profiled = on

    def profile_rows(self):
        return [
            {
                "group": "effect",
                "name": "fsync queue",
                "count": 3,
                "total_s": 0.0123,
                "p50_s": 0.004,
                "p99_s": 0.0042,
                "max_s": 0.000_042,
            }
        ]

    def update_table(self, name: str) -> str:
        return {"aliases": "/etc/aliases: 3 keys"}[name]

    def update_security(self, what: str) -> str:
        if what == "tls":
            raise ValueError("the configuration has no [tls]")
        return "2 users"

    def enable_route(self, address: str) -> bool:
        with contextlib.suppress(KeyError):
            self.resting.remove(address)
            return True
        return False

    def trace(self, subsystem: str, on: bool, only: str = "") -> None:
        assert self.tracer is not None
        self.tracer.set(subsystem, on, only)

    def follow(
        self, subsystem: str, write: Callable[[str], None], only: str = ""
    ) -> Callable[[], None]:
        assert self.tracer is not None
        return self.tracer.follow(subsystem, write, only)

    def verbose(self, on: bool) -> None:
        self.is_verbose = on
