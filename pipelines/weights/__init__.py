"""Small weights trained by a command in this repository, with their data cards."""
