"""Raw nights with known truth. `simulate_gsaoi(out, seed=1, size=2048, ...)` writes one; nothing is loaded before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdask.simulate.gsaoi import simulate_gsaoi

__all__ = ["simulate_gsaoi"]


def __getattr__(name: str) -> Any:
    if name == "simulate_gsaoi":
        from gdask.simulate.gsaoi import simulate_gsaoi

        return simulate_gsaoi
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
