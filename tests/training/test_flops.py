import pytest

from training.flops import peak_of


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("A100-80GB", 312),
        ("A100", 312),
        ("A100-40GB", 312),
        ("H100", 989),
        ("h100", 989),
        ("H100-PCIe", 756),
        ("H100-NVL", 835),
        ("H200-NVL", 835),
        ("GH200", 989),
        ("B200", 2250),
        ("GB200", 2500),
    ],
)
def test_peaks_are_found_by_the_names_of_price_lists(name: str, tflops: int) -> None:
    assert peak_of(name) == tflops * 1e12


@pytest.mark.parametrize("name", ["L4", "CPU", "", "NVIDIA RTX A1000", "A10", "H2000"])
def test_no_peak_is_made_up_for_a_card_that_the_table_lacks(name: str) -> None:
    assert peak_of(name) is None
