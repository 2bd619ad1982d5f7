"""The poly learning-rate schedule, changed every few iterations."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def poly_factor(iteration: int, max_iterations: int, power: float, interval: int) -> float:
    """(1 - i / max)^power, with i the iteration (counted from 0) rounded down to `interval`."""
    iteration = min(iteration, max_iterations) // interval * interval
    return (1 - iteration / max_iterations) ** power


def poly_schedule(optimizer: Optimizer, max_iterations: int, power: float = 0.9,
                  interval: int = 10) -> LambdaLR:
    """`poly_factor` on every group's learning rate; call `step()` once an iteration."""
    return LambdaLR(optimizer, lambda i: poly_factor(i, max_iterations, power, interval))
