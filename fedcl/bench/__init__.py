"""`fedcl bench`: client updates per second beside Flower, pfl and plain loops, alternately, on the same steps.

Whoever is compared runs in a process of its own, in the same environment, from the same weights, data and batches
(`work`); before anything is timed their final weights must agree. `runner` tells what comes out.
"""
