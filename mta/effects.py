"""The one seam: every effect that the server has on the world goes through here.

Nothing else in `mta` may open, write, sync, rename, unlink, connect, look up, spawn, or read a clock
(a lint rule says so), so that a test can make the n-th effect fail, hang, or be the last one.
Every effect names its `op` and a `site`, the place that asked for it.
"""
