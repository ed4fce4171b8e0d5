"""Sweeps: scenarios x grid x seeds, run to the end whatever happens in between.

In: a sweep file (`spec`, of `axes`). It is expanded to runs, each keyed by the hash of its resolved configuration, and
every run lies in DIR/runs/KEY as `fedcl run` would leave it (`runs`). Ray tasks work them off (`sitting`);
DIR/events.jsonl says what has happened. Out: the run directories, which `tables` and `fedcl report` read.

With a block `search` (`space`) the settings are not listed but looked for (`searching`), advised by Optuna (`advice`),
given up where they are behind (`pruning`); the best of each method are compared, and written as groups (`best`).
`simulated` checks what the tables say of seeds on sweeps whose truth is known.
"""
