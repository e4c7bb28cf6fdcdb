"""What happens to a face: frame -> message, and sample -> release. Never asks "when"."""
