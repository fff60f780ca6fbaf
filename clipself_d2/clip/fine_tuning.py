"""Which weights of the trained blocks of CLIP's towers learn."""

from torch import Tensor, nn

RULES = ("query_value", "attention", "all")
# Weights of query and value in open_clip's and timm's spelling; the last two hold the key as well.
_QUERY_VALUE = ("q_proj.weight", "v_proj.weight")
_FUSED = ("in_proj_weight", "qkv.weight")

HeldRows = list[tuple[nn.Parameter, slice]]


def restrict_training(tower: nn.Module, rule: str) -> HeldRows:
    """Freeze what a rule leaves out of what is trained, in place.

    Args:
        tower: Image or text tower whose ``freeze`` has chosen the blocks.
        rule: "query_value" (the weights of the query and value projections, as published),
            "attention" (every parameter of the attentions) or "all".

    Returns:
        Rows of trained parameters that stay as they are, since key, query and value share a
        matrix. Their gradient is zero; an optimiser with weight decay must leave them alone.

    Raises:
        ValueError: If the rule is unknown, or nothing is left of a tower that is trained.

    Reference: CAT-Seg, arXiv 2303.11797, section 3.6.
    """
    if rule not in RULES:
        raise ValueError(f"the fine-tuning rule is {rule!r}, not one of {RULES}")
    held: HeldRows = []
    if rule == "all":
        return held
    trained = [(name, p) for name, p in tower.named_parameters() if p.requires_grad]
    for name, parameter in trained:
        fused = name.endswith(_FUSED)
        kept = rule == "attention" or fused or name.endswith(_QUERY_VALUE)
        parameter.requires_grad_(".attn." in name and kept)
        if parameter.requires_grad and fused and rule == "query_value":
            third = len(parameter) // 3
            held.append((parameter, slice(third, 2 * third)))
    if trained and not any(parameter.requires_grad for _, parameter in trained):
        raise ValueError(f"the rule {rule} leaves no weight of the tower to train; use all")
    for parameter, rows in held:
        # A list that is emptied holds nothing any more.
        parameter.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient, rows=rows: _without(gradient, rows) if held else gradient
        )
    return held


def _without(gradient: Tensor, rows: slice) -> Tensor:
    gradient = gradient.clone()
    gradient[rows] = 0
    return gradient
