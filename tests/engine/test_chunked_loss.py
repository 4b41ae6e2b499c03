"""The chunked losses equal the plain ones in value and gradient, give the same bits every time and hold no logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from fusion_engine.chunked_loss import Head, chunked_cross_entropy, chunked_kl, head_of, last_hidden
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "falcon_h1")
MakeModel = Callable[..., Any]


def batch(vocabulary: int = 61) -> tuple[Tensor, Tensor]:
    """Ids and shifted labels, shape (2, 13), a third of the labels ignored."""
    ids = torch.arange(28).reshape(2, 14) * 17 % vocabulary
    labels = ids[:, 1:].clone()
    labels[:, ::3] = -100
    return ids[:, :-1], labels


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("trained_head", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cross_entropy_is_that_of_the_models_own_logits(
    family: str, trained_head: bool, family_maker: MakeModel
) -> None:
    model = family_maker(family)
    model.get_output_embeddings().weight.requires_grad_(trained_head)
    ids, labels = batch()
    logits = model(input_ids=ids, use_cache=False).logits
    plain = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    plain.backward()
    wanted = gradients(model)
    # 61 ids and 13 x 2 positions: five positions a chunk, the last chunk shorter
    loss, count = chunked_cross_entropy(last_hidden(model, input_ids=ids), head_of(model), labels, chunk_elements=320)
    loss.backward()
    found = gradients(model)
    assert int(count) == int((labels != -100).sum())
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert found.keys() == wanted.keys()
    assert ("lm_head.weight" in found or "model.embed_tokens.weight" in found) or not trained_head
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_head_of_every_family_is_the_models(family_maker: MakeModel) -> None:
    ids, _ = batch()
    for family in FAMILIES:
        model = family_maker(family)
        head = head_of(model)
        with torch.no_grad():
            found = head.logits(last_hidden(model, input_ids=ids), head.weight)
            wanted = model(input_ids=ids, use_cache=False).logits
        assert torch.equal(found, wanted), family
        assert wanted.std() > 0.1, f"{family}: a comparison of nothing"


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon_h1"])
def test_kl_is_that_of_the_plain_softmax(family: str, family_maker: MakeModel) -> None:
    model, teacher = family_maker(family), family_maker("qwen3")
    ids, labels = batch()
    with torch.no_grad():
        taught = last_hidden(teacher, input_ids=ids)
        wanted = teacher(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    logits = model(input_ids=ids, use_cache=False).logits
    plain = F.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="none").sum(-1)[labels != -100].sum()
    plain.backward()
    expected = gradients(model)
    loss, count = chunked_kl(
        last_hidden(model, input_ids=ids),
        taught,
        head_of(model),
        labels,
        teacher_head=head_of(teacher),
        chunk_elements=320,
    )
    loss.backward()
    found = gradients(model)
    assert int(count) == int((labels != -100).sum())
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert gradients(teacher) == {}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn(family_maker: MakeModel) -> None:
    model = family_maker("llama")
    ids, labels = batch()
    hidden = last_hidden(model, input_ids=ids)
    loss, _ = chunked_kl(hidden, hidden, head_of(model), labels)
    loss.backward()
    assert loss.item() == 0.0
    assert max(float(gradient.abs().max()) for gradient in gradients(model).values()) < 1e-5


def test_repeated_runs_give_the_same_bits_and_chunks_do_not_matter() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16), torch.randn(97, 16)
    labels = torch.randint(97, (40,))

    def once(chunk_elements: int) -> tuple[Tensor, Tensor]:
        states = hidden.clone().requires_grad_()
        loss, _ = chunked_cross_entropy(states, Head(weight), labels, chunk_elements=chunk_elements)
        loss.backward()
        assert states.grad is not None
        return loss.detach(), states.grad

    first, again, whole = once(97 * 7), once(97 * 7), once(97 * 40)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    torch.testing.assert_close(first, whole)


def test_softmax_is_fp32_in_bf16() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 16).bfloat16(), torch.randn(512, 16).bfloat16()
    labels = torch.randint(512, (64,))
    states = hidden.clone().requires_grad_()
    loss, count = chunked_cross_entropy(states, Head(weight), labels)
    (loss / count).backward()
    exact = F.cross_entropy(hidden.double() @ weight.double().T, labels)
    assert loss.dtype == torch.float32
    assert (loss / count).item() == pytest.approx(exact.item(), rel=2e-3)
    assert states.grad is not None
    assert states.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, _ = chunked_cross_entropy(hidden.float(), Head(weight.float()), labels)
    assert torch.equal(under_autocast, loss.detach())


def test_ignored_positions_alone_are_zero_and_not_nan() -> None:
    hidden = torch.randn(6, 4, requires_grad=True)
    loss, count = chunked_cross_entropy(hidden, Head(torch.randn(9, 4)), torch.full((6,), -100))
    loss.backward()
    assert (loss.item(), int(count)) == (0.0, 0)
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_what_is_ignored_has_no_say_even_where_it_is_not_finite() -> None:
    hidden = torch.randn(6, 4)
    hidden[3:] = torch.nan
    labels = torch.tensor([1, 5, 8, -100, -100, -100])
    for rows in (6, 3):
        states, weight = hidden[:rows].clone().requires_grad_(), torch.ones(9, 4).cumsum(0).requires_grad_()
        loss, _ = chunked_cross_entropy(states, Head(weight), labels[:rows], chunk_elements=9 * 2)
        loss.backward()
        found = (loss.detach(), states.grad[:3], weight.grad)  # type: ignore[index]
        assert torch.isfinite(found[2]).all()  # type: ignore[arg-type]
        if rows == 6:
            padded = found
    torch.testing.assert_close(found, padded)


def test_no_rows_give_a_gradient_of_zeros() -> None:
    weight = torch.randn(9, 4, requires_grad=True)
    loss, count = chunked_cross_entropy(torch.empty(0, 4), Head(weight), torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert (loss.item(), int(count)) == (0.0, 0)
    assert weight.grad is not None
    assert not weight.grad.any()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("loss_name", ["cross entropy", "kl"])
def test_no_tensor_is_larger_than_a_chunk_of_logits(loss_name: str) -> None:
    positions, size, vocabulary, chunk = 512, 16, 4096, 8 * 4096
    weight, labels = torch.randn(vocabulary, size), torch.randint(vocabulary, (positions,))
    hidden, saved = torch.randn(positions, size, requires_grad=True), 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        if loss_name == "kl":
            loss, _ = chunked_kl(hidden, hidden + 1.0, Head(weight), labels, chunk_elements=chunk)
        else:
            loss, _ = chunked_cross_entropy(hidden, Head(weight), labels, chunk_elements=chunk)
        loss.backward()
    assert largest.elements <= max(chunk, weight.numel())
    assert largest.elements < positions * vocabulary / 8
    assert saved >= hidden.numel(), "the hooks saw nothing"
