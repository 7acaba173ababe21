"""What every program of Triptych does alike: flags and their faults, log lines, the tie to a parent, histograms,
and how a client's connection is held.

The only part of the contract that touches the process it runs in; the messages and rules beside it stay pure.
"""
