"""The model: the decisions of `mta.core` on SimPy, with sampled durations.

A map:

- what is asked: scenario/, settings, conditions, timeline, checks, listing; shapes, shares, clients, groups, loadrecord, workload, message:
  what is sent; behaviours/, profiles, remote/: hosts that the scripted sink runs, too
- the run: runner; driver carries instructions out; inbound, queue, outbound, resolver, local stand for the server's files of the same
  name, beside, operator and pressure for who comes to it; kernel and heapkernel (clocks), cpu, tls, restarts and spool (a process that
  ends), distributions, costs
- what it came to: result, census, measured and records (traces), layout and memory (bytes), beyond (what the model leaves out)
- costs from recorded runs: calibrate; tracefile, measure, cpufit, waitfit, memory, localcosts, leastsquares
- other settings: compare; replay, recorded, replaylocal, rows, sentline for runs, logs/ for mail logs; sweep, sweepcommand, sweepsubject,
  sweeptask, sweeprun, sweepcache, executors, sweepstats, sweepresult, pareto, sweepwords, sweepreport, sweepplots
- belief: validate, validation/, theory
- figures and pages: figures, pages, stylesheet, drainplots, studyplots, perfetto
- commands/ is what is typed; ending, wholefile: how a command ends that is interrupted; compiled, codeversion, collector: speed
"""
