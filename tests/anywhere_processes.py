"""Run by test_anywhere.py under torchrun: a network with DRS in several processes against one.

In float64, so that nothing but rounding may differ. Fails with an exception.
"""

import copy

import torch
from test_anywhere import Own

from models.drs import add_drs
from utils.runtime import setup, shutdown


def main() -> None:
    runtime = setup("cpu", "off", seed=0)
    for mode in ("fixed", "learnable"):
        one = Own().double()
        add_drs(one, mode)
        shared = copy.deepcopy(one)
        network = runtime.distribute(shared)
        images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
        share = slice(2 * runtime.rank, 2 * runtime.rank + 2)
        for _ in range(3):
            for model, part in ((one, slice(None)), (network, share)):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                model(images[part]).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        theirs = shared.state_dict()
        for name, value in one.state_dict().items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-9, atol=1e-12)
    shutdown()


if __name__ == "__main__":
    main()
