"""Which jobs are run, in which order, and the file that remembers them, so that an interrupted study goes on."""

import json
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from quality_base import BenchBase
from quality_cells import Outcome, flops_per_step, measure_base, run_cell
from quality_methods import AT_EQUAL_COMPUTE, FUSION, METHODS, OTHER_PLACEMENTS, SETTINGS, TURNS, Cell

RATE_FACTOR, EQUAL = 2.0, 1.01
PROCESSES = 2


@dataclass(frozen=True)
class Scale:
    """How much is run. `widest` is the number of rates at which a sweep gives up."""

    steps: int = 216
    seeds: tuple[int, ...] = (0, 1)
    first_rates: int = 3
    widest: int = 5
    retained: tuple[float, ...] = (0.25, 0.5)


class Records:
    """Results by key, one JSON line each, appended when they are there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._found: dict[str, Any] = dict(json.loads(line) for line in lines)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def add(self, key: str, value: Any) -> None:
        self._found[key] = value
        with self._path.open("a") as file:
            file.write(json.dumps([key, value]) + "\n")

    def outcome(self, cell: Cell) -> Outcome:
        return msgspec.convert(self._found[cell.key], Outcome)

    def get(self, key: str) -> Any:
        return self._found[key]


class Study:
    """Runs what the comparison needs, two jobs at a time, and remembers every result in `records`."""

    def __init__(self, base: BenchBase, scale: Scale, records: Records, say: Callable[[str], None]) -> None:
        self.scale, self.records = scale, records
        self._base, self._say = base, say
        self.variants = [(method, rehearsal) for rehearsal in (True, False) for method in METHODS]

    def run(self, *, settings: bool = False) -> None:
        """What the comparison needs; with `settings` also the jobs that look around the training loop's defaults."""
        # Processes of their own, because PyTorch's threads and accelerate's state are kept by process.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(PROCESSES, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            self._pool = pool
            self._once("base", measure_base)
            self._count_flops()
            for rehearsal in (True, False):
                self._sweep([variant for variant in self.variants if variant[1] is rehearsal])
                self._cells(self.second_seeds(rehearsal))
                if rehearsal:
                    self._cells([*self.equal_compute(), *self.placements(), *self.retained()])
            if settings:
                self._cells(self.settings())

    # -- what is run -------------------------------------------------------------------------------------------------

    def best(self, method: str, rehearsal: bool) -> Cell:
        """The job of the first seed whose rate is best: the lowest perplexity of B, and of equals what keeps A best.

        Figures within EQUAL of the lowest count as equal: seeds lie as far apart.
        """
        found = {cell: self.records.outcome(cell).perplexity for cell in self.swept(method, rehearsal)}
        lowest = min(one["B"] for one in found.values())
        return min((cell for cell in found if found[cell]["B"] <= EQUAL * lowest), key=lambda cell: found[cell]["A"])

    def swept(self, method: str, rehearsal: bool) -> list[Cell]:
        """Every job of the sweep that has been run, by rate."""
        first = METHODS[method].rates[0]
        rates = [first * RATE_FACTOR**power for power in range(-self.scale.widest, self.scale.widest + 1)]
        cells = [self._cell(method, rehearsal, rate) for rate in rates]
        return [cell for cell in cells if cell.key in self.records]

    def second_seeds(self, rehearsal: bool) -> list[Cell]:
        return [replace(self.best(method, rehearsal), seed=seed) for method in METHODS for seed in self.scale.seeds[1:]]

    def equal_compute(self) -> list[Cell]:
        """The other methods with as many steps as cost what full fine-tuning costs, at their best rate."""
        flops = {method: self.records.get(f"flops-{method}") for method in METHODS}
        return [
            replace(
                self.best(method, True),
                steps=round(self.scale.steps * flops["full"] / flops[method] / TURNS) * TURNS,
                seed=seed,
            )
            for method in AT_EQUAL_COMPUTE
            for seed in self.scale.seeds
        ]

    def placements(self) -> list[Cell]:
        """The default mode with its new blocks elsewhere, at the rate that is best for the default."""
        best = self.best("fusion", True)
        return [replace(best, placement=place, seed=seed) for place in OTHER_PLACEMENTS for seed in self.scale.seeds]

    def retained(self) -> list[Cell]:
        """Both modes of Fusion with their weights moved toward the base by several shares at export."""
        return [replace(self.best(method, True), retain=share) for method in FUSION for share in self.scale.retained]

    def settings(self) -> list[Cell]:
        """The default mode with one setting of the training loop changed, by setting, value and seed."""
        best = self.best("fusion", True)
        changed = [(name, value) for name, values in SETTINGS.items() for value in values]
        return [replace(best, setting=one, seed=seed) for one in changed for seed in self.scale.seeds]

    def _cell(self, method: str, rehearsal: bool, rate: float) -> Cell:
        return Cell(method, rehearsal, rate, self.scale.seeds[0], self.scale.steps)

    # -- how it is run -----------------------------------------------------------------------------------------------

    def _once(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        if key not in self.records:
            self.records.add(key, self._pool.submit(function, *arguments, self._base).result())

    def _count_flops(self) -> None:
        for method in METHODS:
            self._once(f"flops-{method}", flops_per_step, self._cell(method, True, METHODS[method].rates[0]))

    def _sweep(self, variants: list[tuple[str, bool]]) -> None:
        """Each method at its first rates, then on while the best is at an edge."""
        self._cells(
            self._cell(method, rehearsal, rate)
            for method, rehearsal in variants
            for rate in METHODS[method].rates[: self.scale.first_rates]
        )
        while wider := [cell for variant in variants for cell in self._next_rate(*variant)]:
            self._cells(wider)

    def _next_rate(self, method: str, rehearsal: bool) -> list[Cell]:
        swept = self.swept(method, rehearsal)
        lowest = min(swept, key=lambda cell: self.records.outcome(cell).perplexity["B"])
        if len(swept) >= self.scale.widest or lowest not in (swept[0], swept[-1]):
            return []
        rate = lowest.lr * (RATE_FACTOR if lowest == swept[-1] else 1 / RATE_FACTOR)
        return [self._cell(method, rehearsal, rate)]

    def _cells(self, cells: Iterable[Cell]) -> None:
        """Run those that have no result yet. Raises what a job raised, after the results before it are remembered."""
        missing = [cell for cell in dict.fromkeys(cells) if cell.key not in self.records]
        running: dict[Future[Outcome], Cell] = {self._pool.submit(run_cell, cell, self._base): cell for cell in missing}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                outcome = future.result()
                self.records.add(cell.key, msgspec.to_builtins(outcome))
                found = outcome.perplexity
                self._say(f"{cell.key}: B {found['B']:.2f}  A {found['A']:.2f}  C {found['C']:.2f}")
