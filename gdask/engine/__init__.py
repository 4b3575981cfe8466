"""Running graphs: compute, memory, checkpoints."""
