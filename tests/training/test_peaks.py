import pytest

from training import peaks


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA A10", None),
    ],
)
def test_peaks_are_found_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, tflops: int | None
) -> None:
    monkeypatch.setattr(peaks.torch.cuda, "get_device_name", lambda _: name)
    peak = peaks.peak_flops(peaks.torch.device("cuda", 0))
    assert peak == (tflops * 1e12 if tflops else None)
