"""The commands, by theme. PyTorch and Matplotlib take seconds to import, so each imports what it needs when it runs."""
