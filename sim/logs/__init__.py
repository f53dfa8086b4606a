"""Mail logs of other servers, read for what happened: when mail came, how large, for whom, and how each attempt went.

    lines.py      what stands before the text of a line: instants in all their spellings, host, program, process
    reader.py     files: plain, gzip, bzip2, xz; rotated sets in any order; whose log it is
    writers.py    who wrote it: one host of several
    postfix.py    Postfix 2.3 and later
    opensmtpd.py  OpenSMTPD in its three dialects, and this server's own log
    exim.py       Exim's main log
    record.py     what they have in common
    fate.py       what becomes of a recipient, attempt by attempt
    windows.py    when a host was out of order, from runs of failures
    world.py      a record as a world for the model: arrivals, destinations, and why attempts failed
    fate.py, host.py  a host that answers as it did
    replay.py     that world under the settings as they were, and under others
    maincf.py     those settings, where Postfix's configuration is there
    plots.py      figures; command.py: the command line

The rule: a reader never fails because of what a line says. What it does not understand it counts, by kind; what it
remembers of messages that are not settled has a limit.
"""
