"""The closed loop: which faces are kept as samples, what people say of them, and where they are stored."""
