"""Data synthesis: other poses, lights, ages and expressions of a face, made from one photo of it."""
