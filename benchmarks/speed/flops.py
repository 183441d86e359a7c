"""The least arithmetic that one K-FAC update of a network of linear layers can do."""

from collections.abc import Sequence
from math import ceil


def block_sizes(size: int, max_factor_size: int | None) -> list[int]:
    """Sizes of the diagonal blocks into which a factor is split, as equal as they can be.

    :param size: of the factor
    :param max_factor_size: of a block; ``None`` for one block
    """
    count = 1 if max_factor_size is None else ceil(size / max_factor_size)
    return [size // count + (i < size % count) for i in range(count)]


def update_flops(
    layers: Sequence[tuple[int, int]],
    batch: int,
    *,
    inverse_period: int = 1,
    max_factor_size: int | None = None,
) -> dict[str, float]:
    """Count the floating-point operations of all matrix products of one update, by phase.

    For each layer with weight ``(out, in)`` and a bias, a batch of N, and a product of ``(m, k)`` and
    ``(k, n)`` counted as 2 m k n:

    =================  ==========================  ==================================================
    phase              product                     operations
    =================  ==========================  ==================================================
    forward            ``x W'``                    2 N in out
    backward           ``dW``, and ``dx`` but for  2 N in out, twice
                       the first layer
    fisher_backward    ``dx``, to layer outputs    2 N in out, but for the first layer
    factors            ``a' a`` and ``g' g``       2 N in² + 2 N out² (the bias column is a sum)
    inverses           Cholesky n³/3, then the     n³ each, every ``inverse_period`` updates;
                       inverse 2n³/3 (LAPACK)      n = in + 1 and n = out
    precondition       ``S⁻¹ G A⁻¹``               2 out (in + 1) (out + in + 1)
    quadratic          ``S D A``                   the same
    =================  ==========================  ==================================================

    A factor in blocks of sizes b has Σ b² and Σ b³ in place of n² and n³, and a product with it costs
    Σ b² times the other dimension. Nothing elementwise is counted.

    :param layers: ``(in, out)`` of each layer, first to last
    :param batch: N
    :param inverse_period: updates between two refreshes of the inverses
    :param max_factor_size: larger factors are split into diagonal blocks
    """
    phases = dict.fromkeys(
        ("forward", "backward", "fisher_backward", "factors", "inverses", "precondition", "quadratic"),
        0.0,
    )
    for index, (inputs, outputs) in enumerate(layers):
        product = 2.0 * batch * inputs * outputs
        phases["forward"] += product
        phases["backward"] += product if index == 0 else 2.0 * product
        phases["fisher_backward"] += 0.0 if index == 0 else product
        A, S = (block_sizes(n, max_factor_size) for n in (inputs + 1, outputs))
        A_squares, S_squares = (float(sum(b**2 for b in blocks)) for blocks in (A, S))
        # The bias, last coordinate of A, lies in the last block and needs no product.
        without_bias = A_squares - A[-1] ** 2 + (A[-1] - 1) ** 2
        phases["factors"] += 2.0 * batch * (without_bias + S_squares)
        phases["inverses"] += float(sum(b**3 for b in (*A, *S))) / inverse_period
        both_sides = 2.0 * (S_squares * (inputs + 1) + outputs * A_squares)
        phases["precondition"] += both_sides
        phases["quadratic"] += both_sides
    return phases
