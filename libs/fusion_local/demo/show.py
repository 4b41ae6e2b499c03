"""What the demo shows at its end: a few generated lines and one table."""

from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def generate(model_dir: Path, prompt: str, tokens: int = 60) -> str:
    """Sampled text of the delivered model, loaded as any tool would load it; the same at every call."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, local_files_only=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    torch.manual_seed(0)
    ids = tokenizer(prompt, return_tensors="pt")
    output = model.generate(
        **ids, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=True, temperature=0.7, pad_token_id=0
    )
    text: str = tokenizer.decode(output[0], skip_special_tokens=True)
    return text


def table(result: dict[str, Any]) -> Table:
    shown = Table(show_header=False, title="Fusion demo")
    shown.add_row("parameters", f"{result['params_before']:,} → {result['params_after']:,}")
    for name, value in result["perplexity"].items():
        shown.add_row(f"held-out perplexity, {name.replace('_', ' ')}", f"{value:.2f}")
    shown.add_row("tokens", f"{result['tokens']:,}")
    shown.add_row("estimate", f"${result['estimate_usd']:.6f}")
    shown.add_row("bill", f"${result['billed_usd']:.6f}")
    shown.add_row("retries", str(result["retries"]))
    shown.add_row("wall time", f"{result['seconds']:.0f} s")
    shown.add_row("model", result["model_dir"])
    return shown
