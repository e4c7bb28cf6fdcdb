"""A network as a file, and what runs it: plans, engines, the GPU, parity."""
