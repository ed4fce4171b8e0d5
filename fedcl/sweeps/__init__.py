"""Sweeps: scenarios x grid x seeds, run to the end whatever happens in between.

In: a sweep file (`spec`). It is expanded to runs, each keyed by the hash of its resolved configuration, and every run
lies in DIR/runs/KEY as `fedcl run` would leave it (`runs`). Ray tasks work them off (`pool`); DIR/events.jsonl says
what has happened. Out: the run directories, which `tables` and `fedcl report` read.
"""
