"""What a comparison of servers says of us: two questions with a number that was set before, and why a number can't be had.

1. **Speed at equal durability**: messages per second end to end of `full-speed`, ours against the fastest other server that
   syncs at least as much: once a message, before its 250. A server that promises first and writes later plays another game.
2. **Memory of what waits**: bytes that a queued envelope costs in what keeps it, in `long-queue`: our store (packed, alone in a
   fresh process) against the growth of OpenSMTPD's scheduler process, whose whole duty this is.

Everything is computed from compare.json, so that an old comparison can be asked again.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

OURS: Final = "ours"

SPEED: Final = "full-speed"
MEMORY: Final = "long-queue"

SPEED_WANTED: Final = 1.5
"""Times the fastest other server."""

MEMORY_WANTED: Final = 4.0
"""Times less than OpenSMTPD's scheduler."""

SYNCED: Final = 0.95
"""Syncs per message, sent one at a time, from which a server is taken to sync each before its 250; the start and end of a
server are taken off, which can cost a few of sixty."""

NOISE: Final = 0.15
"""Share of the machine that other programs took, above which a verdict carries a doubt."""

OVERLOADED: Final = 0.8
"""Share of the offered rate below which a server did not keep up."""

KEEPER: Final = ("opensmtpd", "scheduler")
"""The server whose queue is kept in memory by a process that does nothing else, and that process."""

Answer = Literal["met", "missed", "not measured"]


class Verdict(NamedTuple):
    """One question and its answer."""

    name: str
    wanted: str
    """As people read it."""
    ours: float | None
    theirs: float | None
    unit: str
    against: str
    """Whose value theirs is."""
    ratio: float | None
    """How many times better ours is, by medians."""
    low: float | None
    """The same, by our worst repeat and their best; None without repeats."""
    answer: Answer
    why: str
    """What it rests on, or why there is no number; one sentence or two."""


def verdicts(result: Mapping[str, Any]) -> list[Verdict]:
    """Return the verdicts of a comparison of servers."""
    return [speed(result), memory(result)]


def find_cell(result: Mapping[str, Any], scenario: str, label: str) -> Mapping[str, Any] | None:
    """Return one server's part in a scenario; None if there is none."""
    for section in result["scenarios"]:
        if section["name"] == scenario:
            for cell in section["cells"]:
                if cell["label"] == label:
                    found: Mapping[str, Any] = cell
                    return found
    return None


def labels(result: Mapping[str, Any]) -> list[str]:
    """Return the servers of a comparison, in its order."""
    every = (cell["label"] for section in result["scenarios"] for cell in section["cells"])
    return list(dict.fromkeys(every))


def middle(cell: Mapping[str, Any] | None, name: str) -> float | None:
    """Return the median of a quantity."""
    if cell is None:
        return None
    value: float | None = cell["quantities"].get(name, {}).get("median")
    return value


def syncs_of(result: Mapping[str, Any], label: str) -> float | None:
    """Return how often a server syncs for a message; None if that was not counted."""
    for section in result["scenarios"]:
        found = middle(find_cell(result, section["name"], label), "fsyncs_per_message")
        if found is not None:
            return found
    return None


def speed(result: Mapping[str, Any]) -> Verdict:
    """Return whether ours is fast enough, end to end at equal durability."""
    name, quantity = "Speed, end to end, at equal durability", "messages_per_s"
    wanted = f"at least {SPEED_WANTED:g} times the fastest"

    def unknown(why: str) -> Verdict:
        return Verdict(name, wanted, None, None, "messages/s", "", None, None, "not measured", why)

    ours = find_cell(result, SPEED, OURS)
    mine = middle(ours, quantity)
    if ours is None or mine is None:
        return unknown(f"{SPEED} has no run of ours.")
    broken = _broken(ours)
    if broken:
        return Verdict(
            name, wanted, mine, None, "messages/s", "", None, None, "missed", f"Ours: {broken}."
        )
    equal, unequal, untold = [], [], []
    for label in labels(result):
        cell = find_cell(result, SPEED, label)
        value = middle(cell, quantity)
        if label == OURS or cell is None or value is None:
            continue
        synced = syncs_of(result, label)
        if synced is None:
            untold.append(label)
        elif synced < SYNCED:
            unequal.append(f"{label} (syncs {synced:g} times a message)")
        elif not _broken(cell):
            equal.append((value, label, cell))
    my_syncs = syncs_of(result, OURS)
    if my_syncs is None:
        return unknown("Nobody counted what ours syncs: that needs strace.")
    if my_syncs < SYNCED:
        return unknown(f"Ours syncs {my_syncs:g} times a message: that is no equal durability.")
    if not equal:
        why = f"No other server that syncs each message came to the end of {SPEED}"
        missing = [*unequal, *(f"{each} (not counted)" for each in untold)]
        return unknown(why + (f"; left out: {', '.join(missing)}." if missing else "."))
    theirs, against, cell = max(equal, key=lambda each: each[0])
    ratio = mine / theirs
    low = None
    if min(len(each["quantities"][quantity]["values"]) for each in (ours, cell)) > 1:
        low = ours["quantities"][quantity]["low"] / cell["quantities"][quantity]["high"]
    words = [
        f"Syncs per message: ours {my_syncs:g}, "
        + ", ".join(f"{label} {syncs_of(result, label):g}" for _, label, _ in equal)
        + "."
    ]
    if unequal or untold:
        others = [*unequal, *(f"{each} (not counted)" for each in untold)]
        words.append(f"Not at equal durability, so not asked: {', '.join(others)}.")
    words += _doubt([ours, cell])
    answer: Answer = "met" if ratio >= SPEED_WANTED else "missed"
    return Verdict(
        name, wanted, mine, theirs, "messages/s", against, ratio, low, answer, " ".join(words)
    )


def memory(result: Mapping[str, Any]) -> Verdict:
    """Return whether an envelope that waits is small enough."""
    name = "Memory of a queued envelope (packed)"
    wanted = f"at most 1/{MEMORY_WANTED:g} of OpenSMTPD's scheduler"
    server, agent = KEEPER

    def unknown(why: str) -> Verdict:
        return Verdict(name, wanted, None, None, "B", "", None, None, "not measured", why)

    ours, theirs = find_cell(result, MEMORY, OURS), find_cell(result, MEMORY, server)
    mine = middle(ours, "store_per_envelope")
    if ours is None or mine is None:
        return unknown(f"{MEMORY} has no run of ours in which the store was measured alone.")
    found = (theirs or {}).get("agents", {}).get(agent, {})
    value, error = found.get("bytes_per_envelope_uss"), found.get("bytes_per_envelope_uss_stderr")
    if theirs is None or value is None:
        return unknown(f"{MEMORY} has no run of {server}.")
    if value <= 2 * (error or 0.0):
        return unknown(f"{server}'s {agent} did not grow with its queue: {value:g} B ± {error:g}.")
    words = [
        f"Ours: growth of a fresh process that only fills the store. {server}: growth of private memory of its {agent} process"
        f" on its own queue, ± {error or 0:g} B."
    ]
    whole, whole_theirs = middle(ours, "uss_per_envelope"), middle(theirs, "uss_per_envelope")
    if whole is not None and whole_theirs is not None:
        words.append(
            f"All that grows, caches and all: ours {whole:,.0f} B, {server} {whole_theirs:,.0f} B an envelope:"
            f" {whole_theirs / whole:.1f} times; our whole server against their {agent} alone:"
            f" {value / whole:.1f} times."
        )
    ratio = value / mine
    answer: Answer = "met" if ratio >= MEMORY_WANTED else "missed"
    return Verdict(
        name, wanted, mine, value, "B", f"{server}, {agent}", ratio, None, answer, " ".join(words)
    )


def _broken(cell: Mapping[str, Any]) -> str:
    """Return which promise a server broke, if it did: a fast server that loses mail is not fast."""
    for what in ("lost", "altered"):
        count = sum(cell["quantities"][what]["values"])
        if count:
            return f"{count:,.0f} recipients {what}"
    return ""


def _doubt(cells: list[Mapping[str, Any]]) -> list[str]:
    most = max((middle(cell, "foreign_cpu") or 0.0 for cell in cells), default=0.0)
    if most <= NOISE:
        return []
    return [f"Doubtful: other programs took {most:.0%} of the machine meanwhile."]


# ---- what can't be compared


def not_comparable(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield, in plain words, which server could not be compared in what, and why."""
    yield from (f"{each}." for each in result.get("skipped", []))
    for each in result.get("failed", []):
        yield f"{each}: this run is left out."
    for label in labels(result):
        yield from _of_server(result, label)


def _of_server(result: Mapping[str, Any], label: str) -> Iterator[str]:
    synced = syncs_of(result, label)
    if synced is not None and synced < SYNCED:
        yield (
            f"{label}: syncs {synced:g} times a message: it answers 250 before the disk has the mail, which a power cut takes."
            " Its speed is shown, and not asked for the verdict."
        )
    slow = list(_overloaded(result, label))
    if slow:
        yield (
            f"{label}: took less than was offered: {', '.join(slow)}. Its latencies there are those of a server with too much to do."
        )
    for section in result["scenarios"]:
        cell = find_cell(result, section["name"], label)
        if cell is None:
            why = section.get("left_out", {}).get(label)
            if why:
                yield f"{label}: not in {section['name']}: {why}."
            continue
        yield from _of_cell(section, cell)
    counts = {
        cell["queue_unit"]
        for section in result["scenarios"]
        if (cell := find_cell(result, section["name"], label)) is not None
    }
    if "messages" in counts:
        yield (
            f"{label}: does not tell envelopes, so its queue is counted in messages, and what one costs in memory is not asked:"
            " deferred mail is in files."
        )


def _overloaded(result: Mapping[str, Any], label: str) -> Iterator[str]:
    for section in result["scenarios"]:
        rate = section["load"]["rate"]
        taken = middle(find_cell(result, section["name"], label), "accepted_per_s")
        if rate and taken is not None and taken < OVERLOADED * rate:
            yield f"{taken:,.0f} messages/s of {rate:,.0f} in {section['name']}"


def _of_cell(section: Mapping[str, Any], cell: Mapping[str, Any]) -> Iterator[str]:
    label, name = cell["label"], section["name"]
    refused = sum(cell["quantities"].get("refused", {}).get("values", []))
    if refused:
        yield f"{label}: refused {refused:,.0f} recipients in {name}."
    queued = cell["quantities"]["queued"]["values"]
    if any(queued) and is_to_drain(section):
        at = next(i for i, count in enumerate(queued) if count)
        waited = cell["watched_s"][at]
        slow = cell.get("second_attempt_s")
        why = (
            f": what failed once is tried again {slow:g} s after it came, and it can't be told otherwise"
            if slow
            else ""
        )
        after = f" in {waited:,.0f} s" if waited else ""
        yield f"{label}: {name}: not drained{after}, {queued[at]:,.0f} recipients left in its queue{why}."


def is_to_drain(section: Mapping[str, Any]) -> bool:
    """Return whether a scenario's queue can become empty: somebody's did."""
    return any(any(cell["drained"]) for cell in section["cells"])
