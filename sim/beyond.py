"""What of a scenario the model leaves out, in words: a number is worth what its reader knows of it."""

from collections.abc import Iterator

from sim.scenario import Scenario
from sim.settings import IGNORED


def beyond(scenario: Scenario) -> Iterator[str]:
    """Yield a line for each thing that a real run of the scenario has and the model has not."""
    dane = [each.name for each in scenario.destinations if each.dane != "none"]
    if dane:
        yield f"what TLSA look-ups of {', '.join(dane)} cost: the model knows what comes of them"
    if scenario.load.auth:
        yield "logins: the model's clients say nothing of who they are, and nobody checks passwords"
    if scenario.load.sizes.max >= LARGE_BYTES or (
        scenario.load.sizes.law == "fixed" and scenario.load.sizes.bytes >= LARGE_BYTES
    ):
        yield "what large bodies cost: the model has no disk bandwidth, no buffers and no file cache"
    if not scenario.load.keep and scenario.load.rate >= MANY_PER_S:
        yield "what a connection costs the kernel: backlog, descriptors, TIME_WAIT"
    if scenario.load.keep and any(each.disk == "full" for each in scenario.timeline):
        yield "421 for sessions with limits.smtp.max_errors refusals, and their second attempts: the model counts no errors"
    if scenario.load.beside:
        kinds = ", ".join(group.kind for group in scenario.load.beside)
        yield f"single bytes of clients that send no mail ({kinds}), and their buffers"
    unheard = [key for key in scenario.server if key in IGNORED]
    if unheard:
        yield f"settings of {', '.join(unheard)}: they are the real server's"
    if scenario.vary:
        yield f"the sweep over {', '.join(scenario.vary)}: `sim sweep` runs it"


LARGE_BYTES = 4 * 1024 * 1024
"""From here on a message is large: bodies are files, and bandwidth matters."""

MANY_PER_S = 300.0
"""New connections a second that are a load by themselves."""
