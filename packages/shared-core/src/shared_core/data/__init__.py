"""Data sets by name, sampling that depends on nothing but (seed, epoch, index), and loaders over both."""
