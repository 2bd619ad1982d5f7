"""What every stage shares: options, runtime, loops, checkpoints, files, logging."""
