"""The decisions: what to try, when, how many at once, what to hold, what to answer.

The contract, in five lines: `Engine.handle(stimulus, now=)` takes in what has happened and returns
instructions, to be carried out in order. `Engine.next_wakeup()` says when `TimeReached` is wanted next.
The core does no I/O, reads no clock and rolls no dice of its own; it breaks its own ties, by evpid.
Times are seconds since the epoch and never decrease. `Engine.validate()` asserts the invariants.
`mta.driver` carries instructions out on real sockets and disks, `sim.driver` with sampled durations.

A map:

- values: ids, address, reply, limits, settings (checked configuration), limitchange (limits set at run time)
- hoststats, shape: what the operator asks about: the latest news of destinations, the age of queued mail
- stimuli, instructions: all that crosses the border
- envelopes/: how envelopes are kept in memory, five representations behind one interface
- engine: the door; gives each stimulus to the scheduler or to one of the two agents
- expiry: what is too old while somebody is paused
- scheduler: pending, scheduled, in flight, held, suspended; expiry
- agent: who may connect to whom, now; relaybook, destinations, waiting, places, rests, outcomes, opener, surrender are its
  parts: relays and when to look at them, where they lead, mail that waits there, caps and gaps and routes, what is left
  alone, what became of each envelope, one more connection, a destination that is given up
- relay, holdqueue, relayrules: its nouns; back-pressure; what the operator wants for which destination
- local: who gets the next local delivery; policies for what is over the caps
- sasl: who logs in
- rules, aliases, expansion, expanded, expansionlimits, lookup: whose mail it is
- retry, concurrency, feedback, routing, admission, bounce: policies, each by name
- stress, pressure: when limits shrink, and what is given up when memory is short
- metrics, records: names and shapes that both shells fill
"""
