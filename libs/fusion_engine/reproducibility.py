"""What makes two runs equal: deterministic kernels, seeds, restorable random states, and a record of the ground."""

import os
import platform
import random
from typing import Any

import accelerate
import numpy as np
import torch
import transformers


def make_deterministic(seed: int, threads: int, kernels: bool = True) -> None:
    """Seed every generator, and choose deterministic `kernels` for the whole process.

    Without those a GPU may compute other bits each time, and a resumed run other weights than an undisturbed one.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(kernels)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, adds nothing
    torch.backends.cuda.enable_mem_efficient_sdp(not kernels)  # its backward pass is not deterministic
    torch.backends.cuda.enable_cudnn_sdp(not kernels)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fingerprint(device: torch.device, seed: int, world_size: int) -> dict[str, object]:
    """Runs with equal fingerprints and inputs give equal bytes."""
    return {
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}",
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "world_size": world_size,
    }


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all of this process's generators, as JSON-ready values."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    states = {
        "python": [version, list(words), gauss],
        "numpy": [keys.tolist(), position, has_gauss, cached_gaussian],  # type: ignore[union-attr]
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return states


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_states` returned. Raises KeyError where a generator's state is missing."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached_gaussian = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached_gaussian))
    torch.set_rng_state(_byte_tensor(states["torch"]))
    if device.type == "cuda":
        torch.cuda.set_rng_state(_byte_tensor(states["cuda"]), device)


def _byte_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
