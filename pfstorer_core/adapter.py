"""Public address of identity adapters, kept for code outside; see docs/architecture.md."""

from .identities.adapter import AdapterInfo, IdentityAdapter

__all__ = ["AdapterInfo", "IdentityAdapter"]
