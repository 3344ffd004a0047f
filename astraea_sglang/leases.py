"""How much KV may be locked for paused programs, by whom and for how long? Every lease has an end."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Limits(NamedTuple):
    """The most that leases may hold: tokens in all, of one program, of one tenant; and seconds."""

    total: int
    program: int
    tenant: int
    seconds: float


@dataclass(slots=True)
class Lease:
    """Some tokens of a program's path, locked in the radix tree until a time (seconds of the table's clock)."""

    tokens: int
    tenant: str
    until: float


@dataclass(slots=True)
class Leases:
    """Who holds what. Tokens are counted per program: what two programs share counts for both, so never too little."""

    limits: Limits
    held: dict[str, Lease] = field(default_factory=dict)
    tokens: int = 0
    tenants: dict[str, int] = field(default_factory=dict)

    def room(self, key: str, tenant: str) -> int:
        """How many tokens may the program `key` hold, what it holds now not counted?"""
        own = self.held.get(key)
        left = self.limits.total - self.tokens + (own.tokens if own else 0)
        if tenant:
            mine = own.tokens if own and own.tenant == tenant else 0
            left = min(left, self.limits.tenant - self.tenants.get(tenant, 0) + mine)
        return max(0, min(left, self.limits.program))

    def grant(self, key: str, tenant: str, tokens: int, until: float) -> Lease:
        """The program `key` holds `tokens` until `until`, instead of what it held; ask `room` first."""
        self.release(key)
        lease = self.held[key] = Lease(tokens, tenant, until)
        self.tokens += tokens
        if tenant:
            self.tenants[tenant] = self.tenants.get(tenant, 0) + tokens
        return lease

    def release(self, key: str) -> None:
        """The program `key` holds nothing any more."""
        lease = self.held.pop(key, None)
        if lease is None:
            return
        self.tokens -= lease.tokens
        if lease.tenant:
            self.tenants[lease.tenant] -= lease.tokens
            if not self.tenants[lease.tenant]:
                del self.tenants[lease.tenant]
