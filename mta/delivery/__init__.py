"""Local delivery: what takes one message for one recipient on this machine, and says what became of it.

`base` is the contract (`Job`, `DeliveryResult`, `Deliverer`, `DeliveryLimits`). `maildir`, `mbox`, `lmtp`
and `pipe` keep it. `headers` has what is put before a message and what shows that it loops, `files` the
way into a recipient's directory, `effects` what these do to the world.
"""
