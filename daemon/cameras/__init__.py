"""The kinds of camera, one module each; `..camera` describes what they have in common."""
