import pytest
import torch
from spectral_triton.kernels.t_factor import t_factor_fwd


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "k", "block_size"), [(1, 1, 1), (65, 12, 5), (700, 20, 32)])
def test_t_factor_inverts_s(n, k, block_size, dtype, device):
    unit = torch.nn.functional.normalize(torch.randn(2, k, n), dim=-1).to(dtype)
    unit[0, k // 2] = 0
    t_factors = t_factor_fwd(unit.to(device), block_size).cpu().double()
    for start in range(0, k, block_size):
        v = unit[:, start : start + block_size].double()
        is_zero = (v == 0).all(-1)
        s = (v @ v.mT).triu(1) + torch.diag_embed(torch.where(is_zero, 1.0, 0.5))
        t = t_factors[:, start // block_size, : v.shape[1], : v.shape[1]]
        assert (t.tril(-1) == 0).all()
        error = (t @ s - torch.eye(v.shape[1])).abs().max()
        assert error <= 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("matrices", "k"), [(0, 3), (2, 0)])
def test_without_reflectors_there_are_no_blocks(matrices, k, device):
    unit = torch.zeros(matrices, k, 5, device=device)
    assert t_factor_fwd(unit, 2).shape == (matrices, (k + 1) // 2, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_of_the_last_block_is_the_identity(dtype, device):
    unit = torch.nn.functional.normalize(torch.randn(1, 5, 9), dim=-1).to(device, dtype)
    last = t_factor_fwd(unit, 4)[0, 1]
    assert last[0, 0] == 2
    expected = torch.eye(4, dtype=dtype, device=device)
    expected[0, 0] = 2
    assert torch.equal(last, expected)


def test_rejects_what_is_not_contiguous(device):
    unit = torch.eye(4, device=device)[None]
    with pytest.raises(ValueError, match="unit_reflectors must be contiguous"):
        t_factor_fwd(unit[:, ::2], 2)
