"""What is kept of people: sealed, removed without a trace, and accounted for."""
