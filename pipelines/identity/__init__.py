"""Who a face is: the gallery of enrolled people, and the decision known, unknown or uncertain."""
