"""What every meter says of itself, kept in one place; reading is each meter's own."""

from __future__ import annotations

from wattwise_devices.meters.contract import Scope


class DescribedMeter:
    """The properties of the `Meter` contract, from fields that a meter sets when it is made."""

    _name: str
    _scope: Scope
    _rate_hz: float
    _estimated: bool

    @property
    def name(self) -> str:
        return self._name

    @property
    def scope(self) -> Scope:
        return self._scope

    @property
    def rate_hz(self) -> float:
        return self._rate_hz

    @property
    def estimated(self) -> bool:
        return self._estimated

    @property
    def resolution_j(self) -> float | None:
        """None: not a counter of steps."""
        return None
