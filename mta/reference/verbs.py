"""`mtactl`'s verbs, what can be traced, and the metrics, from their own tables."""

from mta.controlverbs import STREAMS, changes
from mta.controlverbs import VERBS as ANSWERED
from mta.core.metrics import METRICS, Kind
from mta.ctl import VERBS
from mta.exposition import prometheus_name
from mta.trace import ALL, SUBSYSTEMS


def verbs_page() -> str:
    """Return the page of `mtactl`."""
    lines = [
        "# mtactl\n\n",
        "`mtactl [-s SOCKET] [--json] VERB ...` sees and steers a running server. Words may be cut short as long as they\n",
        "stay clear (`mtactl sh q`). On a terminal there are tables, in a pipe smtpctl's lines, with `--json` one object\n",
        "a line. The socket has mode 0600; only the server's user and root are answered. Exit status: 0 done; 1 no such\n",
        "thing, or it could not be done; 2 asked wrongly, or no server. Verbs marked * change something, and are logged.\n",
        "An EVPID has 16 hexadecimal digits, a MSGID 8; ABOUT is an address or one of these.\n\n",
        "| verb | what it does |\n| --- | --- |\n",
    ]
    for verb in VERBS:
        words = f"{verb.words} {verb.argument}".strip().replace("|", "\\|")
        # What the server is never asked changes nothing there.
        asked = verb.words in ANSWERED or verb.words in STREAMS
        mark = " *" if asked and changes(verb.words) else ""
        lines.append(f"| `{words}`{mark} | {verb.help} |\n")
    lines += [
        "\n`monitor` and `top` take `-n COUNT` and `-i SECONDS`, `top` also `--once`; `trace` takes `--follow` (`-f`).\n",
        "\n## Subsystems of `trace`\n\n",
        ", ".join(f"`{name}`" for name in (*SUBSYSTEMS, ALL)),
        ".\n\nAn example, line by line: [trace-expand.md](../trace-expand.md).\n",
    ]
    return "".join(lines)


def metrics_page() -> str:
    """Return the page of the metrics."""
    lines = [
        "# Metrics\n\n",
        "By the names of `mtactl show stats`; `/metrics` has them under the second. A counter only grows. Gauges marked\n",
        "0 are 0 again once the queue is empty and no connection is open: one that is not is a leak.\n\n",
        "| name | for Prometheus | kind | what it counts |\n| --- | --- | --- | --- |\n",
    ]
    for metric in METRICS.values():
        kind = metric.kind.value + (", 0" if metric.drains else "")
        name = prometheus_name(metric.name) + ("_total" if metric.kind is Kind.COUNTER else "")
        lines.append(f"| `{metric.name}` | `{name}` | {kind} | {metric.help} |\n")
    return "".join(lines)
