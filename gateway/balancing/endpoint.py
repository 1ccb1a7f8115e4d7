"""One usable provider key, as the balancer sees it: no secret, no address."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A key that draws on a quota.

    `weight` is relative (0 = standby: only when nothing else is ready). `models` are globs over the model name that the
    upstream is asked for; empty means every model. `dialects` name the API faces the provider speaks ("openai",
    "anthropic", "gemini"). `tier` 0 is premium, larger is lower. `max_in_flight` is a concurrency cap, None = no cap.
    Prices are in one currency per million tokens, None = not known. `address` names what fails together with other keys
    (an origin such as "https://host"); None = the provider and region.
    """

    id: str
    quota_id: str
    provider: str
    dialects: frozenset[str] = frozenset({"openai"})
    region: str | None = None
    tier: int = 0
    weight: int = 1
    models: tuple[str, ...] = ()
    max_in_flight: int | None = None
    input_price: float | None = None
    output_price: float | None = None
    address: str | None = None

    def serves(self, model: str, dialect: str) -> bool:
        """Tell whether this key may be asked for `model` in `dialect`."""
        if dialect not in self.dialects:
            return False
        return not self.models or any(model == glob or fnmatchcase(model, glob) for glob in self.models)
