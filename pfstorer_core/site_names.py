"""Names of the places in a UNet where blocks stand, such as "input_blocks.1.0"."""


def module_name(site: str) -> str:
    """Returns a site's key in a `ModuleDict`, which takes no dots."""
    return site.replace(".", "_")
