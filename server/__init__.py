"""Everything that happens on the server: the round loop, methods, optimisers, selection, evaluation, checkpoints."""
