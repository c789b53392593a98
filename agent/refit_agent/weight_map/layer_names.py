"""``<layer name> <ROLE>``: weights that the parser left unnamed and the runtime named itself.

Source: weight_naming section 6 (auto-names; the form was observed, not read) and section 1 (unnamed uses).
"""

from __future__ import annotations

from refit_agent.weight_map.origins import Origin, Stored, of_batch_norm
from refit_agent.weight_map.parsed import Visit
from refit_agent.weight_map.request import Request
from refit_agent.weight_map.sources import NoSourceError

ROLES = ("KERNEL", "BIAS", "SCALE", "SHIFT", "CONSTANT")

_CONVOLUTIONS = {"Conv": {"KERNEL": 1, "BIAS": 2}, "ConvTranspose": {"KERNEL": 1, "BIAS": 2}}


def layer_origins(request: Request, name: str) -> tuple[Origin, ...]:
    """The weight that plays this role in the one node with this layer name; () for another form of name.

    Raises:
        NoSourceError: the name has the form, and no single node or weight answers to it.
    """
    layer, space, role = name.rpartition(" ")
    if not space or not layer or role not in ROLES:
        return ()
    if not request.generation.known:
        raise NoSourceError(f"nobody has read how the parser of {request.generation.label} names layers")
    visits = [v for v in request.walk.visits if v.layer_name == layer]
    if len(visits) != 1:
        raise NoSourceError(f"{len(visits)} nodes of the model make a layer named {layer!r}")
    origin = _of_role(visits[0], role)
    if origin is None:
        raise NoSourceError(f"node {layer!r} ({visits[0].node.op_type}) has no constant for the role {role}")
    return (origin,)


def _of_role(visit: Visit, role: str) -> Origin | None:
    op = visit.node.op_type
    if op == "BatchNormalization" and role in ("SCALE", "SHIFT"):
        folded = of_batch_norm(visit)
        return folded and folded[0 if role == "SCALE" else 1]
    position = _CONVOLUTIONS.get(op, {}).get(role)
    weight = None if position is None else visit.weight(position)
    return None if weight is None else Stored(weight)
