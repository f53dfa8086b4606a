"""Makes postfix-100k.log.bz2 from the log of a run.

    testbed run notebooks/data/maillog/scenario.toml --target postfix --no-model --keep-queue --out runs/mail-log
    python notebooks/data/maillog/make.py runs/mail-log/postfix/cell/var/log/postfix.log postfix-100k.log.bz2

A quarter of an hour, and needs Postfix (`testbed peers install postfix`) and root. What is left out or changed makes 70 MB
fit into 2: lines of other daemons than qmgr, smtp and bounce, process ids, local parts (numbered in each message), the
inode and the last two digits of the microsecond in a queue id, and a size's last two digits. Order, instants,
delays, hosts and replies are as they were.
"""

import bz2
import re
import sys
from pathlib import Path

KEPT = re.compile(rb"(\S+ +\S+ \S+ relay postfix/)(qmgr|smtp|bounce)\[\d+\]: (.*)", re.DOTALL)
ID = re.compile(rb"\b([0-9A-Za-z]{6,9}[0-9A-Za-z]{3})[0-9A-Za-z]z[0-9A-Za-z]{4,9}(?=[: \r\n@]|$)")
TO = re.compile(rb"(?<=: to=<)([^@>]*)(?=@)")
FROM = re.compile(rb"(?<=: from=<)[^@>]+(?=@)")
SIZE = re.compile(rb"(?<=, size=)(\d+)")
ALPHABET = b"0123456789BCDFGHJKLMNPQRSTVWXYbcdfghjklmnpqrstvwxy"


def pseudonymous(lines: list[bytes]) -> list[bytes]:
    """Return the lines that are kept, without what is of no use."""
    shorter: dict[bytes, bytes] = {}
    taken: set[bytes] = set()
    people: dict[bytes, dict[bytes, int]] = {}

    def short(found: re.Match[bytes]) -> bytes:
        name = shorter.get(found[0])
        if name is None:
            # Two messages of the same 52 microseconds get different inodes.
            name = next(
                each
                for each in (found[1] + b"0z" + ALPHABET[i : i + 1] for i in range(len(ALPHABET)))
                if each not in taken
            )
            taken.add(name)
            shorter[found[0]] = name
        return name

    kept: list[bytes] = []
    for line in lines:
        found = KEPT.match(line)
        if found is None:
            continue
        text = ID.sub(short, found[3])
        key = text.partition(b":")[0]
        known = people.setdefault(key, {})
        text = TO.sub(
            lambda to, known=known: b"user%d" % known.setdefault(to[1], len(known) + 1), text
        )  # type: ignore[misc]
        text = FROM.sub(b"sender", text)
        text = SIZE.sub(lambda size: b"%d" % round(int(size[1]), -2), text)
        kept.append(found[1] + found[2] + b": " + text)
    return kept


def main() -> None:
    """Read the first argument, write the second."""
    lines = Path(sys.argv[1]).read_bytes().splitlines(keepends=True)
    Path(sys.argv[2]).write_bytes(bz2.compress(b"".join(pseudonymous(lines))))


if __name__ == "__main__":
    main()
