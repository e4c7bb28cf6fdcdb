"""Programs an operator starts by hand and that end."""
