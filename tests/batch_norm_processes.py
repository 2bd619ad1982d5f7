"""Run by test_training.py under torchrun: batch norm in several processes against one.

In float64, because batch norm on few pixels makes much of any rounding. Fails with an exception.
The processes hold different numbers of images, so their losses are weighted by these.
"""

import copy

import torch
import torch.nn.functional as F

from models.classifier import Classifier
from utils.loading import ShuffledBatches
from utils.runtime import setup, shutdown


def main() -> None:
    runtime = setup("cpu", "off", seed=0)
    one = Classifier(3, width=0.0625, batch_norm=True).double()
    shared = copy.deepcopy(one)
    network = runtime.distribute(shared)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    labels = (torch.rand(4, 3) > 0.5).double()
    order = ShuffledBatches(4, 4, 0, runtime.rank, runtime.world)
    for _ in range(3):
        for model, part, weight in ((one, slice(None), 1), (network, order.share, order.weight)):
            model.train()
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
            loss = F.multilabel_soft_margin_loss(model(images[part]), labels[part])
            (loss * weight).backward()
            optimizer.step()
            optimizer.zero_grad()
    theirs = shared.state_dict()
    for name, value in one.state_dict().items():  # running statistics included
        torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(shared.eval()(images), one.eval()(images))
    shutdown()


if __name__ == "__main__":
    main()
