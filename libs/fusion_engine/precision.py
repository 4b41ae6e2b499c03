"""In which floating-point type a job computes, and in which it keeps what does not learn."""

import torch
from fusion_core.job_spec import Precision


def compute_dtype(precision: Precision, on_cpu: bool) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 on a CPU, where bf16 is several times slower.

    What learns is fp32 whatever this says (master weights, Micikevicius et al., arXiv 1710.03740); frozen weights are
    kept once, in this type, and autocast computes in it.
    """
    if precision == "auto":
        return torch.float32 if on_cpu else torch.bfloat16
    return torch.bfloat16 if precision == "bf16" else torch.float32
