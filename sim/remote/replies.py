"""What every host takes at most, and its words where no behaviour has others."""

from typing import Final

from mta.core.reply import Reply

RECIPIENTS_MAX: Final = 1000
"""Recipients of a message that any host takes; Postfix ``smtpd_recipient_limit``."""

SIZE_MAX: Final = 64 * 1024 * 1024
"""Bytes of a message that any host takes; hosts announce it with SIZE (RFC 1870)."""

GREETING: Final = Reply(220, "", "ESMTP testbed")
HELLO: Final = Reply(250, "", "testbed")
SENDER_OK: Final = Reply(250, "2.1.0", "Ok")
RECIPIENT_OK: Final = Reply(250, "2.1.5", "Ok")
GO_AHEAD: Final = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
TAKEN: Final = Reply(250, "2.0.0", "Ok: queued")
RESET_OK: Final = Reply(250, "2.0.0", "Ok")
BYE: Final = Reply(221, "2.0.0", "Bye")
CANNOT_VRFY: Final = Reply(252, "2.0.0", "Cannot VRFY")
HELLO_FIRST: Final = Reply(503, "5.5.1", "Send EHLO first")
NESTED: Final = Reply(503, "5.5.1", "Nested MAIL command")
MAIL_FIRST: Final = Reply(503, "5.5.1", "Need MAIL command")
NO_RECIPIENTS: Final = Reply(554, "5.5.1", "No valid recipients")
TOO_MANY: Final = Reply(452, "4.5.3", "Too many recipients")
TOO_BIG: Final = Reply(552, "5.3.4", "Message too big")
UNKNOWN: Final = Reply(500, "5.5.2", "Command not recognized")

PLAIN: Final = {
    "RSET": RESET_OK,
    "NOOP": RESET_OK,
    "VRFY": CANNOT_VRFY,
    "QUIT": BYE,
    "HELO": HELLO,
    "EHLO": HELLO,
    "DATA": GO_AHEAD,
    "MAIL": SENDER_OK,
    "RCPT": RECIPIENT_OK,
}
"""What is said to a command in its place that nobody refuses."""
