"""Raw nights with known truth: `simulate_gsaoi(out, seed=1, size=2048, ...)` and `simulate_f2`.

`simulate_campaign(out, nights=2, targets=1, ...)` writes several nights, with faults.

Nothing heavy is loaded before one of them is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdask.simulate.campaign import simulate_campaign
    from gdask.simulate.f2 import simulate_f2
    from gdask.simulate.gsaoi import simulate_gsaoi

__all__ = ["simulate_campaign", "simulate_f2", "simulate_gsaoi"]


def __getattr__(name: str) -> Any:
    if name == "simulate_gsaoi":
        from gdask.simulate.gsaoi import simulate_gsaoi

        return simulate_gsaoi
    if name == "simulate_f2":
        from gdask.simulate.f2 import simulate_f2

        return simulate_f2
    if name == "simulate_campaign":
        from gdask.simulate.campaign import simulate_campaign

        return simulate_campaign
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
