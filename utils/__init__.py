"""What every stage shares: runtime, loops, checkpoints, maps, labels, metrics, CRF, logging."""
