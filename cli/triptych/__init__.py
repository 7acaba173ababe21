"""The `triptych` command: a service from one file on this machine, and the tools around it."""
