"""Does growing beat fine-tuning? Fusion's two modes against full fine-tuning, LoRA and frozen block expansion.

    .venv/bin/python bench/quality.py [--quick] [--fresh] [--settings] [--out docs/figures]

A base of 1.2M parameters is made once (some five minutes) and learns documentation and code. Then a customer's new
domain is taught to it by every method, with rehearsal and without, at equal tokens, each at its best learning rate on
one seed and again on another; the default mode also at equal compute. Every job runs through the engine as a worker
runs it. Two processes of one thread each: some 36 minutes on two quiet cores. An interrupted study goes on where it
was; --fresh begins again; --quick only shows that everything works, in some four minutes. --settings then looks around
the defaults of the training loop, one at a time, in some six minutes more.
"""

import argparse
import shutil
import sys
from pathlib import Path

import msgspec
from quality_base import BaseScale, prepare
from quality_methods import METHODS
from quality_report import Report
from quality_study import Records, Scale, Study

ROOT = Path(__file__).parents[1]
QUICK_BASE = BaseScale(steps=40, pool_rows=64)  # fewer leave OneCycleLR a warm-up of no steps
QUICK = Scale(steps=6, seeds=(0,), first_rates=1, widest=1, retained=(0.5,))


def main() -> int:
    arguments = _arguments()
    folder = ROOT / ".fusion" / ("quality-quick" if arguments.quick else "quality")
    if arguments.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    base = prepare(folder / "base", QUICK_BASE if arguments.quick else BaseScale())
    records = Records(folder / "records.jsonl")
    study = Study(base, QUICK if arguments.quick else Scale(), records, lambda line: print(line, flush=True))
    study.run(settings=arguments.settings)
    report = Report(study)
    print(report.markdown())
    out = arguments.out or (folder if arguments.quick else ROOT / "docs" / "figures")
    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.json").write_bytes(msgspec.json.format(msgspec.json.encode(report.data()), indent=1) + b"\n")
    report.plot(out / "quality.png")
    print(f"\n{len(METHODS)} methods; the data and the plot are in {out}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny, in four minutes; its figures mean nothing")
    parser.add_argument("--fresh", action="store_true", help="forget the base and all results of earlier calls")
    parser.add_argument("--settings", action="store_true", help="also warm-up, weight decay and clipping around theirs")
    parser.add_argument("--out", type=Path, help="where quality.json and quality.png go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
