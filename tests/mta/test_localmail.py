"""Local deliveries in the server: every order is answered once, whatever goes wrong, and a stop ends them."""

import asyncio
import mailbox

import pytest

from mta.addressing import Addressing
from mta.config import Config, lmtp_server
from mta.core.envelopes.base import MdaEnvelope, Recipient
from mta.core.ids import EvpId
from mta.core.instructions import DeliverLocally
from mta.core.reply import Outcome
from mta.core.settings import ConfigError, build
from mta.deliverylog import mda_line
from mta.effects import Effects
from mta.localmail import LocalMail
from mta.queue.base import QueueUnavailableError
from mta.trace import Tracer

ONE = EvpId(1 << 32 | 1)
BODY = b"Subject: x\r\n\r\nhello\r\n"


class Lines:
    """A log that is a list."""

    def __init__(self):
        self.lines = []
        self.info = self.warn = self.lines.append


def config_of(tmp_path, *, rule=None, local=None, aliases=None, more=()):
    """Return the settings of a server for here.test, with alice."""
    home = tmp_path / "alice"
    home.mkdir(exist_ok=True)
    data = {
        "hostname": "mx.test",
        "local": {"allow_root": True, **(local or {})},
        "userbases": {"people": {"alice": {"home": str(home)}}},
        "tables": {"aliases": {"kind": "static", "entries": aliases or {}}},
        "rules": [
            {
                "name": "here",
                "match_domains": ["here.test"],
                "action": "local",
                "aliases": "aliases",
                "userbase": "people",
                **(rule or {}),
            },
            *more,
        ],
    }
    return build(Config, data, source="test")


class Post:
    """Local mail over a queue that is a dict."""

    def __init__(self, config, *, addressed=True):
        self.log = Lines()
        effects = Effects()
        self.tracer = Tracer(self.log)
        self.addressing = (
            Addressing(config, effects=effects, source="test", log=self.log, tracer=self.tracer)
            if addressed
            else None
        )
        self.envelopes = {}
        self.body = BODY
        self.done = asyncio.Queue()
        self.faults = []
        self.mail = LocalMail(
            config,
            self.addressing,
            effects=effects,
            log=self.log,
            load=self.load,
            body=self.read,
            on_done=self.done.put_nowait,
            on_fault=lambda where, error: self.faults.append((where, error)),
        )

    def load(self, evpid):
        found = self.envelopes.get(evpid)
        if isinstance(found, Exception):
            raise found
        return found

    def read(self, msgid):
        if isinstance(self.body, Exception):
            raise self.body
        return self.body

    async def deliver(self, method="local", user="alice", rule="here"):
        """Deliver one message and return its answer."""
        self.envelopes.setdefault(
            ONE,
            MdaEnvelope(
                "a@b.test", "info@here.test", "alice@here.test", user, method, 1.0, "", rule
            ),
        )
        self.mail.start(DeliverLocally(ONE, user))
        async with asyncio.timeout(20):
            answer = await self.done.get()
        assert answer.evpid == ONE
        assert self.mail.running == 0
        return answer

    async def close(self):
        await self.mail.stop()
        if self.addressing is not None:
            self.addressing.close()


@pytest.fixture
async def post(tmp_path):
    made = []

    def make(**options):
        addressed = options.pop("addressed", True)
        post = Post(config_of(tmp_path, **options), addressed=addressed)
        made.append(post)
        return post

    yield make
    for one in made:
        await one.close()


async def test_a_maildir(post, tmp_path):
    """The message is there when the answer is."""
    answer = await post().deliver()
    assert answer.outcome is Outcome.OK
    (message,) = mailbox.Maildir(tmp_path / "alice" / "Maildir", create=False)
    assert message["Delivered-To"] == "alice@here.test"


async def test_an_mbox(post, tmp_path):
    """Under the name that the rule says."""
    answer = await post(rule={"delivery": "mbox", "path": "in"}).deliver()
    assert answer.outcome is Outcome.OK
    assert (tmp_path / "alice" / "in").read_bytes().startswith(b"From a@b.test ")


async def test_a_command_of_a_rule_and_one_of_an_entry(post, tmp_path):
    """The exit status decides."""
    one = post(rule={"delivery": "pipe", "command": ["/bin/sh", "-c", "cat > piped"]})
    assert (await one.deliver()).outcome is Outcome.OK
    assert b"hello" in (tmp_path / "alice" / "piped").read_bytes()
    two = post()
    answer = await two.deliver(method="pipe:/bin/sh -c 'exit 75'", user="")
    assert answer.outcome is Outcome.TEMPFAIL


async def test_a_file_of_an_entry(post, tmp_path):
    """As the server's own user when no user named it."""
    answer = await post().deliver(method=f"file:{tmp_path}/box", user="")
    assert answer.outcome is Outcome.OK
    assert (tmp_path / "box").exists()


async def test_a_server_that_is_not_there(post, tmp_path):
    """LMTP to nobody is a temporary failure."""
    answer = await post(rule={"delivery": "lmtp", "lmtp": f"{tmp_path}/none"}).deliver()
    assert answer.outcome is Outcome.TEMPFAIL


@pytest.mark.parametrize(
    ("options", "outcome", "status"),
    [
        ({"user": "nobody"}, Outcome.PERMFAIL, "5.1.1 User does not exist"),
        ({"rule": "gone"}, Outcome.TEMPFAIL, "4.3.5 Local delivery is not configured"),
    ],
)
async def test_what_is_not_there_any_more(post, options, outcome, status):
    """A user who left since RCPT bounces; a rule that the operator removed keeps its mail waiting."""
    answer = await post().deliver(**options)
    assert (answer.outcome, answer.status) == (outcome, status)


async def test_a_rule_that_delivers_to_nobody_keeps_its_mail(post):
    """It was another when the mail came."""
    answer = await post(rule={"delivery": "expand-only"}).deliver()
    assert answer.outcome is Outcome.TEMPFAIL


async def test_a_server_without_rules_keeps_local_mail(post):
    """It is from a time when there were some."""
    answer = await post(addressed=False).deliver()
    assert (answer.outcome, answer.status) == (
        Outcome.TEMPFAIL,
        "4.3.5 Local delivery is not configured",
    )


@pytest.mark.parametrize("error", [QueueUnavailableError("disk"), MemoryError()])
@pytest.mark.parametrize("where", ["envelope", "body"])
async def test_mail_that_cannot_be_read_waits(post, where, error):
    """The status says nothing of the disk; the log does."""
    one = post()
    if where == "envelope":
        one.envelopes[ONE] = error
    else:
        one.body = error
    answer = await one.deliver()
    assert (answer.outcome, answer.status) == (
        Outcome.TEMPFAIL,
        "4.3.0 Local error, try again later",
    )
    assert one.log.lines


async def test_an_envelope_that_is_gone_or_is_relayed(post):
    """The core asks for what the queue does not have: an answer, and a line."""
    one = post()
    one.mail.start(DeliverLocally(ONE, "alice"))
    answer = await one.done.get()
    assert answer.outcome is Outcome.TEMPFAIL


async def test_a_mistake_of_ours_is_an_answer_and_is_told(post):
    """No envelope is in flight for ever."""
    one = post()
    one.envelopes[ONE] = ValueError("ours")
    answer = await one.deliver()
    assert (answer.outcome, answer.status) == (Outcome.TEMPFAIL, "4.3.0 Internal error")
    assert len(one.faults) == 1


async def test_a_stop_cancels_what_runs_and_tells_nobody(post, tmp_path):
    """The mail is in the queue; a delivery that is cancelled before its first step goes too."""
    one = post(
        rule={"delivery": "pipe", "command": ["/bin/sh", "-c", "touch began; exec sleep 600"]}
    )
    one.envelopes[ONE] = MdaEnvelope("", "a@b", "a@b", "alice", "local", 1.0, "", "here")
    two = EvpId(ONE + 1)
    one.envelopes[two] = one.envelopes[ONE]
    one.mail.start(DeliverLocally(ONE, "alice"))
    async with asyncio.timeout(20):
        while not (tmp_path / "alice" / "began").exists():  # noqa: ASYNC110  # its only sign
            await asyncio.sleep(0.01)
    one.mail.start(DeliverLocally(two, "alice"))
    async with asyncio.timeout(20):
        await one.mail.stop()
    assert one.mail.running == 0
    assert one.done.empty()


async def test_the_log_line_is_that_of_opensmtpd(post):
    """Unquoted; what failed is an error in parentheses."""
    details = MdaEnvelope("a@b.test", "i@h.test", "x@h.test", "alice", "local", 1.0)
    assert mda_line(ONE, details, 62.0, Outcome.OK, "Delivered") == (
        "0000000000000000 mda delivery evpid=0000000100000001 from=<a@b.test> to=<x@h.test>"
        " rcpt=<i@h.test> user=alice delay=1m2s result=Ok stat=Delivered"
    )
    assert mda_line(ONE, details, -1.0, Outcome.TEMPFAIL, "4.2.2 Mailbox full").endswith(
        "delay=0s result=TempFail stat=Error (4.2.2 Mailbox full)"
    )


# ---- who a recipient is


async def test_deliveries_become_envelopes(post):
    """A user's, a file's, a command's and a relayed one; what RCPT said of DSN goes with each."""
    entries = "alice+x, /tmp/f, |/bin/cat, far@away.test"
    one = post(
        aliases={"all": entries},
        more=[{"name": "out", "match_domains": ["*"], "action": "relay", "smart_host": "Hub.test"}],
    )
    recipient = Recipient("all@here.test", "here.test", "NEVER")
    expansion = one.addressing.of_ours(recipient)
    found = one.addressing.envelopes(recipient, expansion)
    assert {(r.address, r.domain, r.delivery, r.user, r.tag, r.rule) for r in found} == {
        ("all@here.test", "alice@", "local", "alice", "x", "here"),
        ("all@here.test", "@", "file:/tmp/f", "", "", "here"),
        ("all@here.test", "@", "pipe:/bin/cat", "", "", "here"),
        ("far@away.test", "hub.test", "", "", "", "out"),
    }
    assert {r.notify for r in found} == {"NEVER"}


async def test_expansion_and_look_ups_are_traced_when_somebody_wants_it(post):
    """Subsystems `expand` and `lookup`; nothing otherwise."""
    one = post(aliases={"info": "alice"})
    recipient = Recipient("info@here.test", "here.test")
    one.addressing.of_ours(recipient)
    assert one.log.lines == []
    one.tracer.set("expand", True)
    one.tracer.set("lookup", True)
    one.addressing.of_ours(recipient)
    text = "\n".join(one.log.lines)
    assert "trace expand: rcpt to=<info@here.test>" in text
    assert 'trace lookup: lookup "info" in table aliases -> "alice"' in text
    assert 'lookup "alice" as user in people -> uid=' in text
    assert "lookup ~alice/.forward -> none" in text


async def test_a_refusal_is_in_the_log_with_its_reason(post):
    """The client is told less."""
    one = post()
    expansion = one.addressing.of_ours(Recipient("ghost@here.test", "here.test"))
    assert expansion.reply.code == 550
    assert any("expand to=<ghost@here.test>" in line for line in one.log.lines)


async def test_the_tree_of_what_is_no_address(post):
    """Is refused in one line."""
    for text in ("", "a b@here.test", "no-at-sign"):
        with pytest.raises(ValueError, match="not an address"):
            post().addressing.show(text)


# ---- what the operator can write


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("127.0.0.1:24", ("127.0.0.1", 24)),
        ("[::1]:24", ("::1", 24)),
    ],
)
def test_an_lmtp_server_by_address(text, server):
    """Address and port."""
    assert lmtp_server(text) == server


@pytest.mark.parametrize("text", ["here", "127.0.0.1:", "127.0.0.1:0", ":24", "127.0.0.1:99999"])
def test_an_lmtp_server_that_is_none_is_told_at_the_start(tmp_path, text):
    """In one line that names the key."""
    with pytest.raises(ConfigError, match=r"rules\.0\.lmtp"):
        config_of(tmp_path, rule={"delivery": "lmtp", "lmtp": text})


def test_rules_that_name_no_table_are_told_at_the_start(tmp_path):
    """And a spool that is nowhere."""
    with pytest.raises(ConfigError, match=r"rules\.0\.aliases"):
        config_of(tmp_path, rule={"aliases": "none"})
    with pytest.raises(ConfigError, match=r"local\.spool"):
        config_of(tmp_path, local={"spool": "mail"})
