"""How the networks learn: samples, augmentation, networks, losses, training. Needs the extra `learn`."""
