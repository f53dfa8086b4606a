"""XCLIENT: a trusted client says for whom it speaks (Postfix XCLIENT_README).

The rule: who may say it depends on the address that connected, or that a trusted proxy announced
(`mta.preface`), and never on what XCLIENT said. Afterwards everything is as if the client named had
connected: counts, rules, Received and log.
"""

from mta.core.reply import Reply
from mta.inbound_phase import Phase
from mta.inbound_session import Session
from mta.xclient import parse_xclient

_NOT_ALLOWED = Reply(550, "5.7.0", "Insufficient authorization")
_IN_TRANSACTION = Reply(503, "5.5.1", "MAIL transaction in progress")


class XclientSession(Session):
    """A session in which a trusted client can say who is behind it."""

    _trusted: bool | None = None
    """The answer of `Door.may_say_xclient`, once it was asked."""

    def _has_transaction(self) -> bool:
        """Say whether MAIL was accepted and its message did not end."""
        raise NotImplementedError

    def _may_idle(self) -> bool:
        """Count a command that carries no mail; end the session if it is one too many."""
        raise NotImplementedError

    def _may_say_xclient(self) -> bool:
        if self._trusted is None:
            # Before the first XCLIENT, so that it can't extend its own rights.
            self._trusted = self.door.may_say_xclient(self.peer)
        return self._trusted

    async def smtp_XCLIENT(self, arg: str) -> None:
        """Take over what the proxy knows, and begin anew with a greeting."""
        if not self._may_say_xclient():
            self.fail(_NOT_ALLOWED)
            return
        if self._has_transaction():
            self.fail(_IN_TRANSACTION)
            return
        said = parse_xclient(arg)
        if isinstance(said, Reply):
            self.fail(said)
            return
        # A proxy has one for each client it speaks for; they are junk all the same if no mail comes.
        if not self._may_idle():
            return
        if said.address is not None:
            # Postfix: an address that is not known has no rights. "unknown" is in no network.
            peer = said.address or "unknown"
            refusal = self.door.move(self.peer, peer)
            if refusal is not None:
                self.fail(refusal)
                return
            self.peer = peer
            # Name and login belonged to the other one.
            self.peer_name = "unknown" if said.name is None else ""
            self.login = ""
        if said.name is not None:
            self.peer_name = said.name or "unknown"
        if said.login is not None:
            self.login = said.login
        self._reset()
        self.helo = said.helo or ""
        self.esmtp = self.helo != "" and said.protocol == "ESMTP"
        self._lock()
        port = f" port={said.port}" if said.port else ""
        login = f" user={self.login}" if self.login else ""
        self.door.log(
            f"{self._id} smtp xclient address={self._address()}{port} host={self._name()}{login}"
        )
        assert self.phase is Phase.COMMAND
        self._greet_client()
