"""The load's own options, and what all of them together ask for: checked before the first connection."""

from argparse import Namespace
from typing import Any, Final

from locust.argument_parser import LocustArgumentParser

from loadtests._outcomes import DEFAULT
from loadtests._player import LAG_MAX_S
from loadtests._scrape import DEFAULT_URL
from loadtests._settings import DEFAULT_HOST, Settings
from mta.core.settings import ConfigError
from sim.scenario import Scenario, load

AS_SCENARIO: Final = "scenario"
"""Choice of an option whose value is the scenario's; Locust's page shows it in the list."""


def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """Add the load's own options to Locust's."""
    # Locust would offer its web page, and a master its port, to the whole network.
    parser.set_defaults(web_host="127.0.0.1", master_bind_host="127.0.0.1")
    add = parser.add_argument  # not of a group: only here Locust learns what its UI shows
    hidden: dict[str, Any] = {"include_in_web_ui": False}
    add(
        "--scenario", default="backlog", help="name or TOML file of the scenario (default: backlog)"
    )
    add(
        "--set",
        dest="scenario_set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of the scenario, as load.rate=500; may be given again",
        **hidden,
    )
    add(
        "--run-id",
        default="",
        help="carried by every message (default: scenario and a random number)",
    )
    add(
        "--loop",
        choices=[AS_SCENARIO, "open", "closed"],
        default=AS_SCENARIO,
        help="open: each message has its instant, whatever the server does; closed: users think, send the same "
        "messages, and wait (default: the scenario's)",
    )
    add(
        "--shape",
        choices=[AS_SCENARIO, "steady", "ramp", "step", "spike", "soak", "burst", "day"],
        default=AS_SCENARIO,
        help="how the rate changes during the run (default: the scenario's)",
    )
    add(
        "--histograms",
        default="",
        metavar="FILE",
        help="write an HDR histogram of each verb, in microseconds, as a histogram log",
        **hidden,
    )
    add(
        "--summary",
        default="",
        metavar="FILE",
        help="write how the run ended as one JSON object: outcomes, lag, percentiles of each verb",
        **hidden,
    )
    add(
        "--lag-max",
        type=float,
        default=LAG_MAX_S,
        metavar="S",
        help="a run is invalid, exit status 3, when one of a hundred messages left later than this because of the "
        f"generator (default: {LAG_MAX_S:g})",
    )
    add("--record", default="", metavar="FILE", help="write one JSON line per message", **hidden)
    add(
        "--load-start",
        type=float,
        default=0.0,
        metavar="EPOCH",
        help="when the schedule begins, in seconds since 1970 (default: at once)",
        **hidden,
    )
    add(
        "--expect",
        default=DEFAULT,
        metavar="LIST",
        help=f"replies that do not fail the run: codes, 4xx, 5xx, lost (default: {DEFAULT})",
    )
    add(
        "--tries",
        type=int,
        default=3,
        help="attempts per message after 421 or a lost connection (default: 3)",
    )
    add(
        "--retry-wait",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds between them (default: 1)",
    )
    add(
        "--smtp-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="longest wait for a reply (default: 60)",
    )
    add(
        "--metrics-url",
        default=DEFAULT_URL,
        env_var="LOCUST_METRICS_URL",
        metavar="URL",
        help="the server's /metrics, for the tab Server of the web UI; empty for no such tab (default: "
        f"{DEFAULT_URL})",
        **hidden,
    )


def asked(options: Namespace, host: str | None) -> tuple[Scenario, Settings]:
    """Return what the options ask for.

    Raises:
        ConfigError: one of them makes no sense, or contradicts another.
    """
    scenario = load(options.scenario, _overrides(options))
    settings = Settings.read(options, host or DEFAULT_HOST)
    if scenario.load.sources > 1 and ":" in settings.address[0]:
        problem = "needs --host with an address of IPv4"
        raise ConfigError("scenario", "load.sources", scenario.load.sources, problem)
    load_s = scenario.messages / scenario.load.rate
    if scenario.load.loop == "open" and not scenario.local and scenario.load.warm_up_s >= load_s:
        problem = f"must end before the load, which takes {load_s:g} s"
        raise ConfigError("scenario", "load.warm_up_s", scenario.load.warm_up_s, problem)
    return scenario, settings


def _overrides(options: Namespace) -> list[str]:
    given = [each for each in options.scenario_set if each]
    if options.loop not in ("", AS_SCENARIO):
        given.append(f"load.loop={options.loop}")
    if options.shape not in ("", AS_SCENARIO):
        given.append(f"load.shape.kind={options.shape}")
    return given
