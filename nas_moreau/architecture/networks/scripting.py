"""Networks for `torch.jit.script`, which cannot compile loops over cells and calls this by `__prepare_scriptable__`."""

from __future__ import annotations

from torch import fx, nn

from nas_moreau.errors import InputError, first_line


def scriptable(network: nn.Module, drop_path: float) -> fx.GraphModule:
    """Returns a network without loops that shares the parameters of `network`, under the same names.

    Args:
        network: In evaluation mode, or in training mode without drop path.
        drop_path: Its rate of drop path.

    Raises:
        InputError: Drop path is on, or an operation of the user cannot be traced.
    """
    if network.training and drop_path > 0:
        raise InputError("A network with drop path cannot be scripted in training mode.", "Call eval() first.")
    tracer = fx.Tracer()
    try:
        graph = tracer.trace(network)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise InputError(
            f"The network cannot be scripted: {first_line(error)}.",
            "Use torch.jit.trace or torch.export, or nas-moreau export --format onnx.",
        ) from error
    for node in graph.nodes:
        node.type = None  # annotations are text here, which the script compiler takes for names of classes
    return fx.GraphModule(network, graph)
