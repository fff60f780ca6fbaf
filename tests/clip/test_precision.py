import pytest
import torch

from clipself_d2.clip import precision
from clipself_d2.clip.precision import check_precision, compute_context

CPU = torch.device("cpu")


def product_type():
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_bf16_multiplies_in_bf16():
    with compute_context(CPU, "bf16"):
        assert product_type() == torch.bfloat16
    assert product_type() == torch.float32


@pytest.mark.parametrize("precision_name", ["fp32", "auto"])
def test_the_callers_autocast_reaches_what_has_no_type_of_its_own(monkeypatch, precision_name):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    with torch.autocast("cpu", dtype=torch.bfloat16), compute_context(CPU, precision_name):
        assert product_type() == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.float16), compute_context(CPU, "bf16"):
        assert product_type() == torch.bfloat16


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_follows_the_processor(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    with compute_context(CPU, "auto"):
        assert product_type() == expected


@pytest.mark.parametrize(("num_tokens", "flash"), [(0, False), (128, False), (129, True)])
def test_only_short_sequences_have_their_attention_matrix_written_out(num_tokens, flash):
    """0 is a length that is not known."""
    outside = torch.backends.cuda.flash_sdp_enabled()
    with compute_context(CPU, "bf16", num_tokens):
        assert torch.backends.cuda.flash_sdp_enabled() == flash
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() == outside


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        ("processor : 0\nflags : fpu avx512f avx512_bf16\n", True),
        ("flags : fpu avx2\n", False),
        ("Features : asimd bf16\n", True),
        ("vendor_id : x\n", False),
    ],
)
def test_processor_features_are_read_word_by_word(monkeypatch, tmp_path, listing, expected):
    file = tmp_path / "cpuinfo"
    file.write_text(listing)
    monkeypatch.setattr(precision, "Path", lambda _: file)
    assert precision.cpu_has_bf16.__wrapped__() is expected
    monkeypatch.setattr(precision, "Path", lambda _: tmp_path / "absent")
    assert precision.cpu_has_bf16.__wrapped__() is False


@pytest.mark.parametrize(
    "function", [check_precision, lambda p: compute_context(CPU, p).__enter__()]
)
def test_unknown_precision_names_the_key(function):
    with pytest.raises(ValueError, match=r"'fp8', expected one of"):
        function("fp8")
