"""The study's tables, its goals and its plot."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from quality_cells import DOMAINS
from quality_methods import FUSION, METHODS, Cell
from quality_study import Study

_RESULTS = (
    "method",
    "steps",
    "rate",
    "B, new",
    "A, kept",
    "C, kept, in no pool",
    "arithmetic of a step with rehearsal",
)


class Report:
    """Reads a finished study. Figures are means over the seeds; +- is half their range."""

    def __init__(self, study: Study) -> None:
        self._study, self._records, self._scale = study, study.records, study.scale

    # -- figures -----------------------------------------------------------------------------------------------------

    def figures(self, cell: Cell) -> dict[str, list[float]]:
        """Perplexities by domain, one of each seed that the job was run with."""
        found = [self._records.outcome(one).perplexity for one in self._seeds(cell)]
        return {domain: [one[domain] for one in found] for domain in DOMAINS}

    def means(self, cell: Cell) -> dict[str, float]:
        return {domain: mean(values) for domain, values in self.figures(cell).items()}

    def _seeds(self, cell: Cell) -> list[Cell]:
        cells = [Cell(**(asdict(cell) | {"seed": seed})) for seed in self._scale.seeds]
        return [one for one in cells if one.key in self._records]

    def _cost(self, method: str) -> float:
        """Arithmetic of a step over that of full fine-tuning, both with rehearsal."""
        ratio: float = self._records.get(f"flops-{method}") / self._records.get("flops-full")
        return ratio

    def goals(self) -> list[tuple[str, bool, str]]:
        """(goal, whether it was reached, the figures)."""
        equal_compute = {cell.method: cell for cell in self._study.equal_compute()}
        full, deep = (self.means(self._study.best(method, True)) for method in ("full", "deep"))
        default, lora = (self.means(equal_compute[method]) for method in ("fusion", "lora"))
        over_full, over_lora = _ratios(default, full), _ratios(default, lora)
        deep_over_full = _ratios(deep, full)
        falling = all(
            later < earlier
            for method in FUSION
            for cell in self._seeds(self._study.best(method, True))
            for earlier, later in pairwise(self._records.outcome(cell).turns)
        )
        return [
            ("default, equal compute: B within 2 % of full fine-tuning", over_full["B"] <= 1.02, _show(over_full, "B")),
            (
                "default, equal compute: A and C 10 % better",
                max(over_full["A"], over_full["C"]) <= 0.9,
                _show(over_full, "AC"),
            ),
            (
                "default, equal compute: ahead of LoRA on all three",
                max(over_lora.values()) < 1.0,
                _show(over_lora, "BAC"),
            ),
            (
                "deep, equal tokens: ahead of full fine-tuning on all three",
                max(deep_over_full.values()) < 1.0,
                _show(deep_over_full, "BAC"),
            ),
            ("every turn improves the held-out figure", falling, "both modes, every seed"),
        ]

    # -- text --------------------------------------------------------------------------------------------------------

    def markdown(self) -> str:
        base = self._records.get("base")
        parts = [
            f"Base: B {base['B']:.2f}, A {base['A']:.2f}, C {base['C']:.2f}.",
            _heading("Equal tokens, each at its best rate", *_RESULTS),
            *(self._row(self._study.best(*variant)) for variant in self._study.variants),
            _heading("Equal compute to full fine-tuning, with rehearsal", *_RESULTS),
            self._row(self._study.best("full", True)),
            *(self._row(cell) for cell in self._first_seeds(self._study.equal_compute())),
            _heading("Every rate of the sweep, first seed", "method", "rehearsal", "rate: B / A / C"),
            *(self._sweep_row(*variant) for variant in self._study.variants),
            _heading("Where the new blocks go (default mode, one rate)", "placement", "after", "B", "A", "C"),
            self._placement_row(self._study.best("fusion", True)),
            *(self._placement_row(cell) for cell in self._first_seeds(self._study.placements())),
            _heading("retain: moved toward the base at export, first seed", "mode", "retain", "B", "A", "C"),
            *(self._retain_row(cell) for cell in self._retain_cells()),
            *self._settings_table(),
            _heading("Goals", "goal", "reached", "ratio"),
            *(f"| {goal} | {'yes' if reached else '**no**'} | {ratio} |" for goal, reached, ratio in self.goals()),
        ]
        return "\n".join(parts)

    def _row(self, cell: Cell) -> str:
        label = METHODS[cell.method].label + (" + rehearsal" if cell.rehearsal else "")
        return f"| {label} | {cell.steps} | {cell.lr:g} | {self._values(cell)} | {self._cost(cell.method):.2f} |"

    def _sweep_row(self, method: str, rehearsal: bool) -> str:
        cells = self._study.swept(method, rehearsal)
        found = [f"{cell.lr:g}: {_slashed(self._records.outcome(cell).perplexity)}" for cell in cells]
        return f"| {METHODS[method].label} | {'yes' if rehearsal else 'no'} | {'; '.join(found)} |"

    def _placement_row(self, cell: Cell) -> str:
        after = ", ".join(str(number) for number in self._records.outcome(cell).new_after)
        return f"| {cell.placement or 'diagnosed'} | {after} | {self._values(cell)} |"

    def _retain_cells(self) -> list[Cell]:
        cells = [*(self._study.best(method, True) for method in FUSION), *self._study.retained()]
        return sorted(cells, key=lambda cell: (FUSION.index(cell.method), cell.retain))

    def _retain_row(self, cell: Cell) -> str:
        found = self._records.outcome(cell).perplexity
        values = " | ".join(f"{found[domain]:.2f}" for domain in DOMAINS)
        return f"| {METHODS[cell.method].label} | {cell.retain:g} | {values} |"

    def _settings_table(self) -> Iterator[str]:
        cells = [cell for cell in self._study.settings() if cell.key in self._records]
        if cells:
            best = self._study.best("fusion", True)
            yield _heading("Around the training loop's defaults (default mode)", "setting", "value", "B", "A", "C")
            yield f"| the defaults | | {self._values(best)} |"
            for cell in self._first_seeds(cells):
                name, value = cell.setting or ("", 0.0)
                yield f"| `{name}` | {value:g} | {self._values(cell)} |"

    def _values(self, cell: Cell) -> str:
        figures = self.figures(cell)
        return " | ".join(_with_spread(figures[domain]) for domain in DOMAINS)

    def _first_seeds(self, cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if cell.seed == self._scale.seeds[0]]

    # -- files -------------------------------------------------------------------------------------------------------

    def data(self) -> dict[str, Any]:
        """Everything that the tables are made of."""
        swept = [cell for variant in self._study.variants for cell in self._study.swept(*variant)]
        settings = [cell for cell in self._study.settings() if cell.key in self._records]
        others = [*self._study.equal_compute(), *self._study.placements(), *self._study.retained(), *settings]
        seconds = [*self._study.second_seeds(True), *self._study.second_seeds(False)]
        cells = list(dict.fromkeys([*swept, *seconds, *others]))
        return {
            "base": self._records.get("base"),
            "flops_per_step": {method: self._records.get(f"flops-{method}") for method in METHODS},
            "jobs": [asdict(cell) | {"outcome": self._records.get(cell.key)} for cell in cells],
            "goals": [{"goal": goal, "reached": reached, "ratio": ratio} for goal, reached, ratio in self.goals()],
        }

    def plot(self, path: Path) -> None:
        """New against retained perplexity: a line for each method's sweep; nearer to the lower left is better."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
        base = self._records.get("base")
        for axis, domain in zip(axes, ("A", "C"), strict=True):
            for number, (method, rehearsal) in enumerate(self._study.variants):
                found = [self._records.outcome(cell).perplexity for cell in self._study.swept(method, rehearsal)]
                label = METHODS[method].label + (" + rehearsal" if rehearsal else "")
                style = {"color": f"C{number % len(METHODS)}", "linestyle": "-" if rehearsal else ":", "marker": "o"}
                axis.plot([one["B"] for one in found], [one[domain] for one in found], label=label, **style)
            axis.axhline(base[domain], color="grey", linewidth=0.8)
            axis.set(xlabel="perplexity, new domain B", ylabel=f"perplexity, domain {domain}", yscale="log")
        axes[0].set_title("known and in the pool; grey: the base")
        axes[1].set_title("known and in no pool")
        axes[1].legend(fontsize=7)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _heading(title: str, *columns: str) -> str:
    return f"\n## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _ratios(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    return {domain: ours[domain] / theirs[domain] for domain in DOMAINS}


def _show(ratios: dict[str, float], domains: str) -> str:
    return ", ".join(f"{domain} {ratios[domain]:.3f}" for domain in domains)


def _with_spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def _slashed(perplexity: dict[str, float]) -> str:
    return " / ".join(f"{perplexity[domain]:.1f}" for domain in DOMAINS)
