"""Virtual time: a clock that is moved, a device and two links to the host that are busy until some time."""

from dataclasses import dataclass, field

START = 1000.0  # seconds: SGLang takes a time of 0 for unset


class Event:
    """What is over at a time known beforehand, with the methods of a torch Event. Who waits moves the clock."""

    def __init__(self, clock: "Clock", at: float | None = None) -> None:
        self._clock, self.at = clock, clock.now if at is None else at

    def record(self, stream: object = None) -> None:
        """It is over when what the device has been given so far is done."""
        self.at = max(self._clock.now, self._clock.device_free)

    def query(self) -> bool:
        """Is it over?"""
        return self.at <= self._clock.now

    def synchronize(self) -> None:
        """Wait until it is over."""
        self._clock.now = max(self._clock.now, self.at)

    def wait(self, stream: object = None) -> None:
        """Streams wait by their own `free` times."""

    def elapsed_time(self, later: "Event") -> float:
        """How many milliseconds lie between the two?"""
        return (later.at - self.at) * 1e3


@dataclass(slots=True)
class Link:
    """One direction between device and host: copies go one after another, beside whatever the device does."""

    token_s: float
    free: float = START
    tokens: int = 0  # copied so far

    def copy(self, tokens: int, now: float) -> tuple[float, float]:
        """When does a copy of so many tokens begin and end, if it is asked for at `now`?"""
        begun = max(self.free, now)
        self.free = begun + tokens * self.token_s
        self.tokens += tokens
        return begun, self.free


@dataclass(slots=True)
class Clock:
    """The time of the scheduler's process, and of the device that works beside it."""

    host_token_s: float
    now: float = START
    device_free: float = START
    to_host: Link = field(init=False)
    to_device: Link = field(init=False)

    def __post_init__(self) -> None:
        self.to_host, self.to_device = Link(self.host_token_s), Link(self.host_token_s)

    @property
    def elapsed(self) -> float:
        """How many seconds have gone by?"""
        return self.now - START

    def run(self, seconds: float, *, loads: bool, wait: bool) -> float:
        """The device runs a pass when it is free: when does it begin?

        A pass that reads what is being loaded from the host (`loads`) ends no earlier than the load, which goes on
        beside it, layer by layer. Whoever does not `wait` may hand over the next pass meanwhile.
        """
        begun = max(self.now, self.device_free)
        self.device_free = begun + seconds
        if loads:
            self.device_free = max(self.device_free, self.to_device.free)
        if wait:
            self.now = self.device_free
        return begun
