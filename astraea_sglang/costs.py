"""What does a token cost on this engine? Measured online, from the times of the steps it finishes."""

from collections import deque
from operator import mul
from statistics import median
from typing import NamedTuple

WINDOW = 128  # steps of each kind
RECENT = 32  # steps that say how long one takes now
ENOUGH = 5  # steps, before anything is measured: the first ones may compile
REFIT_STEPS, REFIT_SECONDS = 32, 1.0  # a fit is due after so many steps, or steps of so long together
PASSES, SETTLED = 10, 0.01  # of reweighting, until the sum of squared errors changes by less than this share
PULL = 30.0  # 1 / variance of the share of a step that one coefficient explains, before steps say anything
CAUTION = 0.01  # sum of squared relative errors that even a perfect fit is taken to have: few steps prove little
FIXED = 3.0  # decode steps: at most so much is the fixed cost of a prefill step, even without a CUDA graph
SECONDS, MOST = (1e-9, 1e6), 1e9  # a step's time, its tokens or rows; a step outside is ignored


class Costs(NamedTuple):
    """What does a token cost on this engine, in seconds? The defaults only stand until the first steps are measured."""

    prefill: float = 3e-5  # per uncached prompt token: what one more adds to a step
    decode: float = 1e-2  # latency of one generated token now: the recent typical decode step
    step: float = 8e-3  # the part of a decode step that no row accounts for
    row: float = 2e-5  # per decoding row
    kv: float = 2e-8  # per token of KV that decoding rows read
    copy: float = 5e-6  # per token of KV moved between device and host, one way: 128 kB at 25 GB/s

    def token(self, context: float, share: float = 1.0) -> float:
        """What does a generated token cost with `context` tokens before it? Seconds, alone (`share` 1) or in a batch.

        Rows of a batch share the fixed part of a step.
        """
        return self.step * share + self.row + self.kv * context


class StepCosts:
    """Measures `Costs` from the engine's last steps; a page fault, a pause or a compilation hardly counts."""

    def __init__(self) -> None:
        self._costs, self._prefills, self._decodes = Costs(), _Window(), _Window()
        self._copies: deque[float] = deque(maxlen=RECENT)  # seconds per token

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A step took `seconds` to prefill `tokens`."""
        self._prefills.add(tokens, 0, seconds)

    def decoded(self, rows: int, kv_tokens: int, seconds: float) -> None:
        """A step took `seconds` to give each of `rows` segments one token; together they read `kv_tokens` of KV."""
        self._decodes.add(rows, kv_tokens, seconds)

    def copied(self, tokens: int, seconds: float) -> None:
        """It took `seconds` to move the KV of `tokens` between device and host."""
        if SECONDS[0] <= seconds <= SECONDS[1] and 0 < tokens <= MOST:
            self._copies.append(seconds / tokens)

    def costs(self) -> Costs:
        """What does a token cost now? The last answer stands until enough steps are new."""
        if self._decodes.due():
            steps = list(self._decodes.steps)
            (step, row, kv), now = _fit(steps), median(y for _, _, y in steps[-RECENT:])
            self._costs = self._costs._replace(decode=now, step=step, row=row, kv=kv)
        if self._prefills.due():
            steps = list(self._prefills.steps)
            guess = self._guess(steps)
            self._costs = self._costs._replace(prefill=_fit(steps, guess)[1] or guess)
        if self._copies:
            self._costs = self._costs._replace(copy=median(self._copies))
        return self._costs

    def _guess(self, steps: list[tuple[float, float, float]]) -> float:
        """What does a prefill token cost, seconds, as far as steps of one length can tell? The prior, within bounds.

        At most a step's time per token; at least that without the most a step's fixed cost can be. Only decode steps
        tell the latter, and short prefills, which are all fixed cost, then bound nothing from below.
        """
        fixed = FIXED * self._costs.decode if len(self._decodes.steps) >= ENOUGH else float("inf")
        least = median((seconds - fixed) / tokens for tokens, _, seconds in steps)
        return min(max(Costs().prefill, least), median(seconds / tokens for tokens, _, seconds in steps))


class _Window:
    """The last steps of one kind as (x, z, seconds), and whether those since the last fit are worth another."""

    def __init__(self) -> None:
        self.steps: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)
        self._new, self._seconds = 0, 0.0

    def add(self, x: float, z: float, seconds: float) -> None:
        if SECONDS[0] <= seconds <= SECONDS[1] and 0 < x <= MOST and 0 <= z <= MOST:
            self.steps.append((x, z, seconds))
            self._new += 1
            self._seconds += seconds

    def due(self) -> bool:
        steps = len(self.steps)
        if steps < ENOUGH or (self._new < min(REFIT_STEPS, steps // 2) and (self._seconds < REFIT_SECONDS)):
            return False
        self._new, self._seconds = 0, 0.0
        return True


def _fit(steps: list[tuple[float, float, float]], guess: float = 0.0) -> list[float]:
    """Which a, b, c >= 0 make seconds = a + b * x + c * z for most `steps`? What they leave open is b = guess, c = 0.

    Least squares of relative errors, reweighted by Tukey's bisquare: an error r = (seconds - fit) / max(seconds, fit)
    is 1 at most, where a step counts nothing, and noise of 20% is far from that; so there is no scale to estimate. At
    first a step is its own fit, but fast ones count less: so a stall counts nothing, and a rare long prefill in full.
    Ridge: b and c are pulled to the guess and to 0, the less the more steps there are and the better they fit.
    """
    xs, zs, ys = map(list, zip(*steps, strict=True))
    typical, off, fit = median(ys), 0.0, [0.0] * 3
    weights = [min(1 / y, y / typical**2) for y in ys]
    for _ in range(PASSES):
        pull = PULL * (off + CAUTION) / len(steps) ** 2
        squares = list(map(mul, weights, weights))
        weighted = squares, list(map(mul, squares, xs)), list(map(mul, squares, zs))
        normal = [[sum(u, 0.0), *(sum(map(mul, u, v), 0.0) for v in (xs, zs, ys))] for u in weighted]
        normal[1][3] += pull * normal[1][1] * guess
        normal[1][1] *= 1 + pull
        normal[2][2] *= 1 + pull
        a, b, c = fit = _solve(normal)
        before, off, weights = off, 0.0, []
        for x, z, y in steps:
            f = a + b * x + c * z
            scale = y if y > f else f
            r = (y - f) / scale
            trust = 1 - r * r
            off += (r * trust) ** 2
            weights.append(trust / scale)
        if abs(off - before) <= SETTLED * (before + CAUTION):
            break
    return fit


def _solve(normal: list[list[float]]) -> list[float]:
    """What solves three normal equations, without a negative coefficient? One at a time is left out until none is."""
    kept = [i for i in range(3) if normal[i][i] > 0]
    found: dict[int, float] = {}
    while kept:
        rows = [[normal[i][j] for j in (*kept, 3)] for i in kept]
        for k, pivot in enumerate(rows):
            pivot[:] = [value / pivot[k] for value in pivot]
            for row in rows:
                if row is not pivot:
                    row[:] = [value - row[k] * p for value, p in zip(row, pivot, strict=True)]
        found = {i: row[-1] for i, row in zip(kept, rows, strict=True)}
        worst = min(kept, key=lambda i: found[i] * normal[i][i] ** 0.5)
        if found[worst] >= 0:
            break
        kept.remove(worst)
    return [found[i] if i in kept else 0.0 for i in range(3)]
