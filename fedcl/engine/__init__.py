"""Where clients run in simulation: Flower Grids on Ray or in this process, both one node that hosts all clients."""
