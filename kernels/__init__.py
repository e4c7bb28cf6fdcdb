"""Arithmetic: arrays in, arrays out. No files, sockets, threads, clocks, logging or config."""
