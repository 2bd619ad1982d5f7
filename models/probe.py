"""Where a network has its activations, and how their channels lie: found out by running it.

In: any network of images. Out: its call sites. The network runs twice in eval mode, at two image
sizes. Dimensions of an activation's output that change are spatial, the one that does not is the
channel: (B, C, H, W), (B, H, W, C), (B, N, C). What does not change at all (squeeze-excite,
classifier) has no regions to suppress. A module may be called several times, with other channels
each time, as ResNet's ReLUs are; each call of the module that calls it is a site of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Names of classes (or of their bases) and of functions. Gates (sigmoids) are none.
ACTIVATIONS = {"relu", "relu6", "leakyrelu", "prelu", "rrelu", "elu", "celu", "selu", "gelu",
               "silu", "swish", "mish", "hardswish", "hardmish", "softplus", "quickgelu",
               "gelutanh", "frelu"}
SIDES = ((64, 128), (256, 320))  # pixels; the second pair for networks that take no small images
BATCH = 2  # images, so that the batch's dimension is told from another of one element


@dataclass(frozen=True)
class Site:
    """One call of an activation module.

    Attributes:
        path: the module's name in the network.
        caller: the name of the module that calls it.
        call: which of `caller`'s calls of it this is, from 0.
        shape: of its output, at the smaller image.
        channel: the dimension of the channels.
    """

    path: str
    caller: str
    call: int
    shape: tuple[int, ...]
    channel: int

    @property
    def channels(self) -> int:
        return self.shape[self.channel]

    @property
    def layout(self) -> str:
        """As a word: BCHW, BHWC, BNC; more dimensions are all called N."""
        spatial = iter("HW" if len(self.shape) == 4 else "N" * len(self.shape))
        return "B" + "".join("C" if dim == self.channel else next(spatial)
                             for dim in range(1, len(self.shape)))


@dataclass
class Report:
    """What a network has, and what becomes of it; as text, a table.

    Attributes:
        sites: the calls that DRS follows.
        skipped: name of an activation module -> why DRS does not follow it.
        functional: calls of functions, as text; no module, so out of reach.
    """

    sites: list[Site]
    skipped: dict[str, str]
    functional: list[str]

    def keep(self, sites: list[Site]) -> None:
        """Leave only these sites; the others become skipped."""
        for site in self.sites:
            if site not in sites:
                self.skipped.setdefault(site.path, "not asked for")
        self.sites = sites

    def __str__(self) -> str:
        lines = [f"{len(self.sites)} call sites of DRS, {len(self.skipped)} activations skipped, "
                 f"{len(self.functional)} functional ones out of reach"]
        shared = Counter(site.path for site in self.sites)
        width = max((len(site.path) for site in self.sites), default=0) + 4
        for site in self.sites:
            name = site.path + (f" #{site.call}" if shared[site.path] > 1 else "")
            at = f"  in {site.caller}" if not site.path.startswith(site.caller) else ""
            lines.append(f"  {name:{width}} {site.channels:5d} channels  {site.layout}{at}")
        lines += [f"  skipped {path}: {why}" for path, why in self.skipped.items()]
        lines += [f"  out of reach {call}" for call in self.functional]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Call:
    """One call in one run: of a module, or of a function (path "" and its name)."""

    path: str
    caller: str
    call: int
    name: str
    shape: tuple[int, ...]


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation, by the name of its class or of a base."""
    return any(base.__name__.lower() in ACTIVATIONS for base in type(module).__mro__)


class _Recorder(TorchFunctionMode):
    """Writes down the calls of activations, while a network runs once under it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._above: list[tuple[str, Counter]] = [("", Counter())]  # what is running: calls so far

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").rstrip("_")
        caller = self._above[-1][0]
        if name.replace("_", "") in ACTIVATIONS and not caller.endswith("\0"):
            self._add("", name, caller, result)
        return result

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for path, module in model.named_modules():
                name = path + "\0" * is_activation(module)  # marked, so that its inside is not seen
                stack.enter_context(_removing(module.register_forward_pre_hook(
                    lambda *_, name=name: self._above.append((name, Counter())))))
                stack.enter_context(_removing(module.register_forward_hook(
                    lambda _m, _i, output, name=name: self._leave(name, output))))
            yield

    def _leave(self, name: str, output: Any) -> None:
        self._above.pop()
        if name.endswith("\0"):
            self._add(name[:-1], "", self._above[-1][0], output)

    def _add(self, path: str, name: str, caller: str, output: Any) -> None:
        counts = self._above[-1][1]
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        self.calls.append(_Call(path, caller.rstrip("\0"), counts[path, name], name, shape))
        counts[path, name] += 1


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _default_inputs(model: nn.Module) -> Callable[[int], Tensor]:
    """Side -> black images (BATCH, channels, side, side) on the network's device."""
    first = next((tensor for tensor in model.parameters()), torch.empty(0))
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = next((conv.in_channels for conv in convs), 3)
    return lambda side: torch.zeros(BATCH, channels, side, side, device=first.device,
                                    dtype=first.dtype)


@torch.no_grad()
def _run(model: nn.Module, images: Any) -> list[_Call]:
    modes = {module: module.training for module in model.modules()}
    recorder = _Recorder()
    try:
        model.eval()
        with recorder.hooked(model), recorder:
            model(images)
    finally:
        for module, training in modes.items():
            module.training = training
    return recorder.calls


def find_sites(model: nn.Module, inputs: Callable[[int], Any] | None = None) -> Report:
    """The call sites of a network's activations.

    Args:
        model: takes one argument; its mode, weights and statistics stay as they are.
        inputs: side in pixels -> that argument, with a batch of 2 square images (default: black
            images with as many channels as the first convolution takes).

    Raises:
        ValueError: the network does not run at two image sizes, or takes other ways in them.
    """
    inputs = inputs or _default_inputs(model)
    for sides in SIDES:
        try:
            small, large = (_run(model, inputs(side)) for side in sides)
            break
        except Exception as error:  # whatever a network raises that does not like the size
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        raise ValueError(f"add_drs: the network must run at two image sizes, so that spatial "
                         f"dimensions are told from channels; at {sides[0]} or {sides[1]} pixels "
                         f"it stops with {reason}; give `inputs`, or a network that takes any size")
    ways = [[(call.path, call.caller, call.call, call.name) for call in calls]
            for calls in (small, large)]
    if ways[0] != ways[1]:
        raise ValueError(f"add_drs: the network calls other activations at {sides[0]} pixels than "
                         f"at {sides[1]}; its call sites cannot be told")
    return _report(model, small, large)


def _channel(small: Sequence[int], large: Sequence[int]) -> int | str:
    """The channel's dimension, or why there is none."""
    if len(small) < 3 or small == large:
        return "its size does not follow the image's"
    if len(small) != len(large) or small[0] != BATCH or large[0] != BATCH:
        return "its first dimension is not the batch"
    same = [dim for dim in range(1, len(small)) if small[dim] == large[dim]]
    return same[0] if len(same) == 1 else f"its shape {tuple(small)} has no one channel dimension"


def _report(model: nn.Module, small: list[_Call], large: list[_Call]) -> Report:
    sites: dict[tuple[str, str, int], Site] = {}
    skipped: dict[str, str] = {}
    functional = []
    for call, other in zip(small, large, strict=True):
        channel = _channel(call.shape, other.shape)
        if call.name:
            if isinstance(channel, int):
                functional.append(f"{call.name}() in {call.caller or 'the network itself'}, "
                                  f"{call.shape[channel]} channels")
        elif isinstance(channel, str):
            skipped[call.path] = channel
        else:
            site = Site(call.path, call.caller, call.call, call.shape, channel)
            known = sites.setdefault((site.path, site.caller, site.call), site)
            if (known.channels, known.layout) != (site.channels, site.layout):
                skipped[call.path] = f"{site.caller} runs several times, with other channels"
    for path in _interleaved(small):
        skipped.setdefault(path, "its calls alternate between a module and those inside it")
    called = {call.path for call in small}
    for path, module in model.named_modules():
        if is_activation(module) and path not in called:
            skipped[path] = "it is not called in eval mode"
    return Report([site for site in sites.values() if site.path not in skipped], skipped,
                  functional)


def _interleaved(calls: list[_Call]) -> set[str]:
    """Modules whose calls one caller resumes after another's: there the number of a call is lost,
    because it is counted from the moment its caller starts."""
    found, last = set(), dict[str, tuple[str, int]]()
    for call in calls:
        if call.name:
            continue
        if call.call > 0 and last[call.path] != (call.caller, call.call - 1):
            found.add(call.path)
        last[call.path] = (call.caller, call.call)
    return found
