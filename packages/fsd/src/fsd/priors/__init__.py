"""What tells how images of a prompt look: diffusion models, and exact denoisers for tests and teaching."""
