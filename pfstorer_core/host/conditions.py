"""What reaches the UNet with every condition of a step: model conditions and options."""

from typing import Any

Conds = list[list[dict[str, Any]] | None]


def with_model_conds(conds: Conds, added: dict[str, Any]) -> Conds:
    """Returns a step's conditions with further model conditions in each; the given ones stay.

    Args:
        conds: as a `CALC_COND_BATCH` wrapper gets them; None stands for a condition not computed.
        added: `comfy.conds` objects by keyword of the UNet's forward.
    """
    return [
        cond and [{**c, "model_conds": {**c.get("model_conds", {}), **added}} for c in cond]
        for cond in conds
    ]


def has_areas(conds: Conds) -> bool:
    """Whether a condition applies to an area only, of which it then sees its own crop."""
    return any("area" in c for cond in conds if cond for c in cond)


def with_options(model_options: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    """Returns a step's model options with further transformer options; the given ones stay."""
    options = {**model_options.get("transformer_options", {}), **added}
    return {**model_options, "transformer_options": options}
