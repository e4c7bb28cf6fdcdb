"""The processes: who runs which pipeline, when, over which sockets, and what happens when it fails."""
