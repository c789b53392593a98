"""``tmp_weight_N``: BatchNormalization of TensorRT 8.4 to 9.3, and made-up constants of every version.

Source: weight_naming sections 2 (8.6 / 9.x numbering) and 6. N is drawn from a counter that layers,
tensors and all kinds of temporaries share; reproducing it would take the whole importer with its
shape inference. What is certain is the order, and that scale and bias of one BatchNormalization
are neighbours. So names are matched, in order, to the nodes that can have made them, and a name
counts as resolved only if every complete matching agrees on it (or on its bytes).

What is assumed: an operator in ``operators.MAKES_NO_CONSTANT`` makes no named constant (inferred from
section 6 and the sample engines); any other operator that is not handled below may have made any
number of them, of any type and length. Without prototypes lengths are unknown; then only a plan that leaves
no choice resolves, in practice one that holds a pair for every foldable BatchNormalization.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from refit_agent.weight_map.alignment import Step, possible_origins
from refit_agent.weight_map.families import SHARED
from refit_agent.weight_map.operators import MAKES_NO_CONSTANT
from refit_agent.weight_map.origins import Filled, Origin, Unknown, of_batch_norm
from refit_agent.weight_map.parsed import Visit
from refit_agent.weight_map.request import Readings, Request
from refit_agent.weight_map.sources import NoSourceError

_TEMPORARY = re.compile(SHARED + "(?:_(0|[1-9][0-9]*))?")


def read_shared(request: Request, names: Sequence[str]) -> Readings:
    """Possible origins of the names ``tmp_weight`` and ``tmp_weight_N``."""
    readings = Readings()
    numbered: list[tuple[int, str]] = []
    for name in names:
        match = _TEMPORARY.fullmatch(name)
        if match:
            numbered.append((int(match[1]) if match[1] else -1, name))
    if not numbered:
        return readings
    numbered.sort()
    asked = [name for _, name in numbered]
    if not request.generation.known:
        reason = f"nobody has read how the parser of {request.generation.label} names what it makes up"
        readings.refuse(asked, NoSourceError(reason))
        return readings
    numbered = [(n, name) for n, name in numbered if _takes_part(request, name)]
    ordered = [name for _, name in numbered]
    steps = [step for visit in request.walk.visits for step in _steps(request, visit)]

    def neighbours(j: int) -> bool:
        low, high = numbered[j][0], numbered[j + 1][0]
        # The bare name is followed by whatever the counter holds; names of the model are skipped.
        return low < 0 or all(f"{SHARED}_{n}" in request.walk.names for n in range(low + 1, high))

    found = possible_origins(ordered, steps, request.fits, neighbours)
    if found is not None:
        readings.origins.update(zip(ordered, found, strict=True))
        return readings
    pairs = sum(len(step.origins) == 2 for step in steps)
    reason = (
        f"the plan's {len(ordered)} names tmp_weight* cannot be matched, in order, to the model's {pairs} "
        f"foldable BatchNormalizations and {len(steps) - pairs} other nodes that make constants"
    )
    # Only where scalars are a side issue does a place say more than the reason above.
    by_place = [o for step in steps if not step.repeats for o in step.origins] if pairs else []
    readings.contradict(request, ordered, by_place, reason)
    return readings


def _takes_part(request: Request, name: str) -> bool:
    """An explicit fold pins its BatchNormalization; any other explicit entry says nothing about the order."""
    pinned = request.explicit.get(name)
    return pinned is None or pinned.transform.startswith("batch-norm")


def _steps(request: Request, visit: Visit) -> list[Step]:
    """What one node can have named, in order."""
    op = visit.node.op_type
    where = f"of {op} {visit.layer_name!r}"
    if op == "BatchNormalization":
        folded = of_batch_norm(visit)
        if folded is not None and SHARED in request.generation.folds:
            return [Step(folded)]
        # From 10.7 on one with constant parameters may fall back, too; see numbered_names.
        falls_back = folded is None or request.generation.version >= (10, 7)
        return [Step((_epsilon(request, visit, where),))] if falls_back else []
    if op == "ConstantOfShape":
        if request.generation.version >= (10, 14) or "value" in visit.attributes:
            return []
        return [Step((Filled(0.0, 1, f"the zero {where}", transform="constant-of-shape"),))]
    if op == "Gemm":
        # The parser scales the product before it looks at the bias.
        factors = [("alpha", True), ("beta", len(visit.node.inputs) > 2 and bool(visit.node.inputs[2]))]
        return [
            Step((Filled(visit.number(name, 1.0), 1, f"{name} {where}"),))
            for name, used in factors
            if used and visit.number(name, 1.0) != 1.0
        ]
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return _zero_point(request, visit, where)
    if op in MAKES_NO_CONSTANT or (op == "Clip" and all(visit.node.inputs[1:]) and len(visit.node.inputs) == 3):
        return []
    if op == "LayerNormalization" and request.generation.version < (10, 0) and visit.weight(2) is not None:
        return []
    if visit.calls_function:
        return []
    return [Step((Unknown(f"a constant {where}"),), repeats=True)]


def _epsilon(request: Request, visit: Visit, where: str) -> Origin:
    types = ("float32",) if request.generation.version < (10, 0) else ("float32", "float16", "bfloat16")
    return Filled(visit.number("epsilon", 1e-5), 1, f"epsilon {where}", types)


def _zero_point(request: Request, visit: Visit, where: str) -> list[Step]:
    """Before 10.0 the zeros have the zero point's own name; see ``stored_names``."""
    if request.generation.version < (10, 0) or len(visit.node.inputs) < 3:
        return []
    zero_point = visit.weight(2)
    if zero_point is None:
        return [Step((Unknown(f"the zero point {where}"),), repeats=True)]
    return [Step((Filled(0.0, zero_point.count, f"the zeros {where}"),))]
