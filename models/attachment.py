"""What lets modules follow the activations of a network in place: forward hooks, nothing replaced.

A hook is an object without a reference to the network, so deepcopy, pickle, torch.compile and
torch.export take it along. The modules that follow an activation are its child `control`, one for
each of its calls; so the names of everything else stay as they are.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from models.probe import Site


class Follower:
    """Hook of an activation: its output goes through `control[number of the call]`."""

    def __init__(self, channels: list[int]) -> None:
        self.channels = channels  # the dimension of the channels, call by call
        self.call = 0  # the next one

    def __call__(self, module: nn.Module, _: Any, y: Tensor) -> Tensor:
        call = self.call if len(self.channels) > 1 else 0
        self.call = call + 1
        # By name, because torch.compile reads no list at a place that changes.
        follow = module.get_submodule(f"control.{call}")
        if isinstance(follow, nn.Identity):
            return y
        x = y.movedim(self.channels[call], 1)
        flat = x if x.dim() == 4 else x.flatten(2)[..., None]
        result = follow(flat, relu=False)
        return result.reshape(x.shape).movedim(1, self.channels[call])


class Start:
    """Hook of a module that calls an activation: when it starts, the activation's calls count from
    its first one. So what gradient checkpointing runs again meets the same controllers."""

    def __init__(self, follower: Follower, call: int) -> None:
        self.follower, self.call = follower, call

    def __call__(self, module: nn.Module, _: Any) -> None:
        self.follower.call = self.call


def attach(model: nn.Module, sites: Iterable[Site], chosen: Callable[[Site], bool],
           build: Callable[[Site], nn.Module]) -> list[Site]:
    """Let `build(site)` follow each chosen site; return those.

    What it builds takes (B, C, H, W), or (B, C, N, 1), and `relu=False`.
    """
    by_path: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        by_path[site.path].append(site)
    followed = []
    for path, calls in by_path.items():
        here = [site for site in calls if chosen(site)]
        if not here:
            continue
        followed += here
        module = model.get_submodule(path)
        module.add_module("control", nn.ModuleList(
            build(site) if site in here else nn.Identity() for site in calls))
        follower = Follower([site.channel for site in calls])
        module.register_forward_hook(follower)
        for number, site in enumerate(calls):
            if site.call == 0 and len(calls) > 1:
                model.get_submodule(site.caller).register_forward_pre_hook(Start(follower, number))
    return followed


def is_attached(model: nn.Module) -> bool:
    """Whether `attach` was here."""
    return any(isinstance(hook, Follower) for module in model.modules()
               for hook in module._forward_hooks.values())


def detach(model: nn.Module) -> None:
    """Undo `attach`."""
    for module in list(model.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, (Follower, Start)):
                    del hooks[key]
                if isinstance(hook, Follower):
                    del module.control
