"""Everything that happens on a client: its visit, its memory, its local training, its answer."""
