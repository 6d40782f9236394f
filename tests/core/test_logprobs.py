import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hfrlhf.core.logprobs import head_logprobs, linear_logprobs

N, D, V = 13, 6, 17


def _inputs(dtype=torch.float64, bias=True, n=N, d=D, v=V):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in [(n, d), (v, d)]
    )
    targets = torch.randint(v, (n,), generator=generator)
    bias = torch.randn(v, generator=generator, dtype=dtype).requires_grad_() if bias else None
    return hidden, weight, bias, targets


def _full(hidden, weight, bias, targets, temperature):
    """The same from the whole table of logits, by torch's own functions."""
    logp = ((hidden @ weight.T + (0 if bias is None else bias)) / temperature).log_softmax(-1)
    return logp[torch.arange(len(targets)), targets], torch.special.entr(logp.exp()).sum(-1)


def _linear(hidden, weight, bias, targets, temperature=1.0, **options):
    return linear_logprobs(hidden, weight, targets, temperature, bias, **options)


def _head(hidden, weight, bias, targets, temperature=1.0, **options):
    return head_logprobs(hidden, lambda h: torch.nn.functional.linear(h, weight, bias), targets, temperature, **options)


BOTH = pytest.mark.parametrize("chunked", [_linear, _head], ids=["linear", "head"])


def _gradients(outputs, inputs):
    """The gradient of a sum in which every output has another weight, so that none can stand in for another."""
    weights = [torch.linspace(-1, 2, len(x), dtype=x.dtype) + i for i, x in enumerate(outputs)]
    total = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
    return torch.autograd.grad(total, [x for x in inputs if x is not None])


@BOTH
@pytest.mark.parametrize("chunk_size", [1, 4, 13, 100, None])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_full_softmax_in_value_and_gradient(chunked, chunk_size, temperature, bias, close):
    hidden, weight, bias, targets = _inputs(bias=bias)
    actual = chunked(hidden, weight, bias, targets, temperature, chunk_size=chunk_size)
    expected = _full(hidden, weight, bias, targets, temperature)
    inputs = (hidden, weight, bias)
    pairs = [
        *zip(actual, expected, strict=True),
        *zip(_gradients(actual, inputs), _gradients(expected, inputs), strict=True),
    ]
    for got, wanted in pairs:
        close(got, wanted)


def test_the_gradient_is_that_of_finite_differences():
    hidden, weight, bias, targets = _inputs(n=5, d=3, v=4)

    def outputs(h, w, b):
        return linear_logprobs(h, w, targets, temperature=0.8, bias=b, chunk_size=2)

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


@BOTH
@pytest.mark.parametrize("used", [0, 1], ids=["logprobs", "entropy"])
def test_one_output_may_go_unused(chunked, used, close):
    hidden, weight, bias, targets = _inputs()
    inputs = (hidden, weight, bias)
    actual = _gradients([chunked(hidden, weight, bias, targets, chunk_size=4)[used]], inputs)
    expected = _gradients([_full(hidden, weight, bias, targets, 1.0)[used]], inputs)
    for got, wanted in zip(actual, expected, strict=True):
        close(got, wanted)


@BOTH
def test_without_entropy(chunked, close):
    hidden, weight, bias, targets = _inputs()
    logprobs, entropy = chunked(hidden, weight, bias, targets, need_entropy=False, chunk_size=4)
    assert entropy is None
    expected = _full(hidden, weight, bias, targets, 1.0)[0]
    close(logprobs, expected)
    close(_gradients([logprobs], [hidden])[0], _gradients([expected], [hidden])[0])


@BOTH
@pytest.mark.parametrize("frozen", ["hidden", "weight and bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(chunked, frozen, close):
    hidden, weight, bias, targets = _inputs()
    expected = _gradients(_full(hidden, weight, bias, targets, 1.0), (hidden, weight, bias))
    still = {"hidden": [hidden], "weight and bias": [weight, bias]}[frozen]
    for tensor in still:
        tensor.requires_grad_(False)
    outputs = chunked(hidden, weight, bias, targets, chunk_size=4)
    sum((x * (torch.linspace(-1, 2, N, dtype=x.dtype) + i)).sum() for i, x in enumerate(outputs)).backward()
    for tensor, gradient in zip((hidden, weight, bias), expected, strict=True):
        if tensor.requires_grad:
            close(tensor.grad, gradient)
        else:
            assert tensor.grad is None


@BOTH
def test_a_row_does_not_depend_on_the_others(chunked, close):
    hidden, weight, bias, targets = _inputs()
    rows = torch.tensor([11, 2, 5])
    for some, all_rows in zip(
        chunked(hidden[rows], weight, bias, targets[rows], chunk_size=2),
        chunked(hidden, weight, bias, targets, chunk_size=5),
        strict=True,
    ):
        close(some, all_rows[rows].detach())


@BOTH
def test_no_tokens_at_all(chunked):
    hidden, weight, bias, targets = _inputs(n=0)
    logprobs, entropy = chunked(hidden, weight, bias, targets)
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert hidden.grad.shape == (0, D)
    assert weight.grad.abs().max() == 0


@BOTH
def test_by_hand(chunked):
    # Logits ln 3, 0 → probabilities ¾, ¼; at temperature ½ they become 9/10, 1/10.
    hidden, weight, targets = torch.ones(1, 1), torch.tensor([[math.log(3.0)], [0.0]]), torch.tensor([1])
    logprobs, entropy = chunked(hidden, weight, None, targets)
    assert logprobs.item() == pytest.approx(math.log(1 / 4))
    assert entropy.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    logprobs, entropy = chunked(hidden, weight, None, targets, 0.5)
    assert logprobs.item() == pytest.approx(math.log(1 / 10))
    assert entropy.item() == pytest.approx(0.9 * math.log(10 / 9) + 0.1 * math.log(10))


@BOTH
def test_extreme_logits_stay_finite(chunked):
    hidden = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[1e4], [0.0], [-1e4]], requires_grad=True)
    logprobs, entropy = chunked(hidden, weight, None, torch.tensor([0, 1]))
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.tolist() == [0.0, -1e4]
    assert entropy.tolist() == [0.0, 0.0]
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@BOTH
def test_a_forbidden_token_counts_for_nothing(chunked, close):
    # The bias forbids token 1: as if the vocabulary did not have it.
    hidden, weight, bias, _ = _inputs()
    targets, kept = torch.full((N,), 3), [v for v in range(V) if v != 1]
    allowed = _full(hidden, weight[kept], bias[kept], targets - 1, 0.9)
    expected = _gradients(allowed, (hidden, weight))
    forbidding = bias.detach().clone()
    forbidding[1] = -math.inf
    outputs = chunked(hidden, weight, forbidding.requires_grad_(), targets, 0.9, chunk_size=4)
    for got, wanted in zip([*outputs, *_gradients(outputs, (hidden, weight))], [*allowed, *expected], strict=True):
        close(got, wanted.detach())


def test_float32_in_float32_out():
    hidden, weight, bias, targets = _inputs(torch.float32)
    for chunked in (_linear, _head):
        outputs = chunked(hidden, weight, bias, targets, chunk_size=4)
        for got, wanted in zip(outputs, _full(hidden, weight, bias, targets, 1.0), strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, wanted)


@BOTH
def test_bfloat16_autocast_is_float32_after_the_product(chunked):
    hidden, weight, bias, targets = _inputs(torch.float32, d=32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = chunked(hidden, weight, bias, targets, chunk_size=4)
    gradients = _gradients(outputs, (hidden, weight, bias))
    expected = _full(hidden, weight, bias, targets, 1.0)
    assert all(x.dtype == torch.float32 for x in (*outputs, *gradients))
    # bfloat16 keeps 8 bits: logits up to 20 are off by up to 0.05, gradients by a few per cent of the largest.
    for got, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0.15)
    for got, wanted in zip(gradients, _gradients(expected, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0.03 * wanted.abs().max().item())
    # From logits that are rounded to bfloat16 by the product alone, all the rest follows in float32.
    logits = torch.nn.functional.linear(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()
    torch.testing.assert_close(outputs[1], torch.special.entr(logits.softmax(-1)).sum(-1))
    torch.testing.assert_close(outputs[0], logits.log_softmax(-1)[torch.arange(N), targets])
    assert (outputs[0] - expected[0]).abs().max() > 1e-3


@BOTH
def test_bfloat16_models(chunked):
    hidden, weight, bias, targets = _inputs(torch.bfloat16)
    outputs = chunked(hidden, weight, bias, targets, chunk_size=4)
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight, bias)]
    expected = _full(*wide, targets, 1.0)
    for got, wanted in zip(outputs, expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=0, atol=0.1)
    gradients = _gradients(outputs, (hidden, weight, bias))
    for got, wanted in zip(gradients, _gradients(expected, wide), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), wanted, rtol=0, atol=0.03 * wanted.abs().max().item())


def test_the_gradient_of_a_bfloat16_weight_keeps_small_late_contributions():
    # 512 tokens that each add 1/512 to one entry, one chunk each: a sum kept in bfloat16 would stop growing at ½.
    hidden, weight = torch.ones(512, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16).requires_grad_()
    logprobs, _ = linear_logprobs(hidden, weight, torch.zeros(512, dtype=torch.int64), chunk_size=1)
    (logprobs.sum() / 256).backward()
    assert weight.grad.flatten().tolist() == [1.0, -1.0]


def test_any_head_a_low_rank_one_with_soft_capped_logits(close):
    hidden, weight, _, targets = _inputs()
    weight.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in [(2, D), (V, 2)])

    def head(h):
        return 5 * torch.tanh((h @ weight.T + h @ a.T @ b.T) / 5)

    logp = (head(hidden) / 0.7).log_softmax(-1)
    expected = logp[torch.arange(N), targets], -(logp.exp() * logp).sum(-1)
    actual = head_logprobs(hidden, head, targets, 0.7, chunk_size=4)
    for got, wanted in zip(actual, expected, strict=True):
        close(got, wanted.detach())
    for got, wanted in zip(_gradients(actual, (hidden, a, b)), _gradients(expected, (hidden, a, b)), strict=True):
        close(got, wanted)


class _LargestTensor(TorchDispatchMode):
    """The most elements that any single tensor made inside has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(result) if torch.is_tensor(x)]
        self.elements = max([self.elements, *sizes])
        return result


def _largest(function, hidden, weight, bias, targets, **options):
    with _LargestTensor() as largest:
        logprobs, entropy = function(hidden, weight, bias, targets, 1.0, **options)
        (logprobs.sum() + entropy.sum()).backward()
    return largest.elements


@BOTH
def test_no_table_of_all_logits_is_ever_made(chunked):
    n, d, v, chunk_size = 96, 2, 500, 8
    inputs = _inputs(torch.float32, n=n, d=d, v=v)
    assert _largest(chunked, *inputs, chunk_size=chunk_size) == chunk_size * v
    assert _largest(_full, *inputs) == n * v  # the measure does see it where it is made


def _kept(function, *inputs, **options):
    """The elements of all tensors that the forward pass keeps for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        function(*inputs, 1.0, **options)
    return sum(kept)


@BOTH
def test_between_the_passes_no_logits_are_kept(chunked):
    n, d, v = 96, 2, 500
    inputs = _inputs(torch.float32, n=n, d=d, v=v)
    # Hidden states, weight and bias of the head, targets, normaliser and entropy at most; no chunk of 8·500 logits.
    assert _kept(chunked, *inputs, chunk_size=8) <= n * d + v * d + v + 3 * n < 8 * v
    assert _kept(_full, *inputs) >= n * v


@BOTH
def test_the_default_chunks_are_bounded_too(chunked):
    # 160,000 logits fit one chunk of the linear head; the general one takes 128 rows at a time.
    n, v = 320, 20_000
    inputs = _inputs(torch.float32, n=n, d=2, v=v)
    assert _largest(chunked, *inputs) == 128 * v


@BOTH
def test_no_graph_is_kept_without_gradients(chunked):
    hidden, weight, bias, targets = _inputs()
    with torch.no_grad():
        logprobs, entropy = chunked(hidden, weight, bias, targets)
    assert not logprobs.requires_grad
    assert not entropy.requires_grad


@BOTH
def test_wrong_inputs_are_explained(chunked):
    hidden, weight, bias, targets = _inputs()
    with pytest.raises(ValueError, match=r"got \[1, 13, 6\] and \[13\]; select the tokens of interest first"):
        chunked(hidden[None], weight, bias, targets)
    with pytest.raises(ValueError, match=r"got \[13, 6\] and \[12\]"):
        chunked(hidden, weight, bias, targets[1:])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        chunked(hidden, weight, bias, targets, 0.0)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        chunked(hidden, weight, bias, targets, chunk_size=0)


def test_a_head_of_another_width_is_refused():
    hidden, weight, _, targets = _inputs()
    with pytest.raises(ValueError, match=r"weight \[17, 5\] does not match hidden states \[13, 6\]"):
        linear_logprobs(hidden, weight[:, 1:], targets)
