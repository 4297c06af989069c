import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptctl.gpu_names import GPU_NAMES, gpu_of, is_asked_for, normalize_gpu
from gptctl.prices import list_offers, read_snapshot
from tests.gptctl.test_prices import TODAY


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        # SkyPilot's, on most clouds
        ("A100", "A100-40GB"),
        ("A100-80GB", "A100-80GB"),
        ("H100", "H100"),
        ("V100-32GB", "V100-32GB"),
        ("RTX6000-Ada", "RTX6000-Ada"),
        # RunPod's, GCP's, Hyperstack's, Fluidstack's, Vast's
        ("A100-80GB-SXM", "A100-80GB"),
        ("H200-SXM", "H200"),
        ("H100-NVL", "H100-NVL"),
        ("H100-MEGA-80GB", "H100"),
        ("A100-80G-PCIe-NVLink", "A100-80GB-PCIe"),
        ("H100-80G-SXM5", "H100"),
        ("A100_NVLINK_80GB", "A100-80GB"),
        ("RTX A6000", "A6000"),
        ("RTXA6000", "A6000"),
        ("Tesla V100", "V100"),
        # nvidia-smi's
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000-Ada"),
        ("Quadro RTX 6000", "RTX6000"),
        # a user's
        ("a100-40gb", "A100-40GB"),
        ("h100 sxm", "H100"),
        ("l40s", "L40S"),
    ],
)
def test_every_spelling_of_a_gpu_is_one_name(name, ours):
    assert normalize_gpu(name) == ours


@pytest.mark.parametrize(
    "name",
    ["", "CPU", "H1000", "A100-64GB", "MI300X", "tpu-v5e", "80GB", "NVIDIA A100 MIG 1g.5gb"],
)
def test_what_is_no_gpu_of_ours_or_a_slice_of_one_has_no_name(name):
    assert normalize_gpu(name) is None


@pytest.mark.parametrize(
    ("cloud", "instance_type", "name", "ours"),
    [
        ("lambda", "gpu_1x_h100_pcie", "H100", "H100-PCIe"),
        ("lambda", "gpu_8x_h100_sxm5", "H100", "H100"),
        ("lambda", "gpu_8x_a100", "A100", "A100-40GB"),
        ("runpod", "8x_A100-80GB_SECURE", "A100-80GB", "A100-80GB-PCIe"),
        ("runpod", "8x_A100-80GB-SXM_SECURE", "A100-80GB-SXM", "A100-80GB"),
        ("runpod", "1x_H100_SECURE", "H100", "H100-PCIe"),
        ("azure", "Standard_NC40ads_H100_v5", "H100", "H100-NVL"),
        ("azure", "Standard_ND96isr_H100_v5", "H100", "H100"),
        ("azure", "Standard_NC24ads_A100_v4", "A100-80GB", "A100-80GB-PCIe"),
        ("cudo", "intel-ice-lake-a100-pci_8x64v128gb", "A100", "A100-80GB-PCIe"),
        ("cudo", "sapphire-rapids-h100_8x64v128gb", "H100-SXM", "H100"),
        ("vast", "1x-H100_NVL-32-65536", "H100", "H100-NVL"),
        ("shadeform", "scaleway_H100", "H100", "H100-PCIe"),
        ("shadeform", "lambdalabs_H100-sxm5x8", "H100", "H100"),
        ("seeweb", "ECS1GPU8", "A100", "A100-80GB"),
        ("gcp", "a3-megagpu-8g", "H100-MEGA", "H100"),
    ],
)
def test_what_skypilot_leaves_open_is_told_by_the_machine_and_the_cloud(
    cloud, instance_type, name, ours
):
    assert normalize_gpu(name, cloud=cloud, instance_type=instance_type) == ours


@given(
    name=st.sampled_from(GPU_NAMES),
    dress=st.sampled_from(
        [str, str.lower, str.upper, lambda name: f"NVIDIA {name}", lambda n: n.replace("-", "_")]
    ),
)
def test_our_own_names_stay_as_they_are_however_they_are_written(name, dress):
    assert normalize_gpu(dress(name)) == name


def test_gpu_of_an_offer_of_ours_is_the_one_it_names():
    offers = list_offers(read_snapshot(), today=TODAY)

    assert [gpu_of(offer) for offer in offers] == [offer.gpu for offer in offers]


@pytest.mark.parametrize(
    ("asked", "gpu", "is_it"),
    [
        ("H100", "H100", True),
        ("H100", "H100-PCIe", True),
        ("h100", "H100-NVL", True),
        ("H100-SXM", "H100", True),
        ("H100-SXM", "H100-PCIe", False),
        ("H100-PCIe", "H100", False),
        ("H100", "GH200", False),
        ("A100", "A100-40GB", True),
        ("A100", "A100-80GB", False),
        ("A100-80GB", "A100-80GB-PCIe", True),
        ("A100-40GB", "A100-40GB", True),
        ("V100", "V100-32GB", False),
        ("RTX6000", "RTX6000-Ada", False),
        ("nonsense", "H100", False),
    ],
)
def test_word_that_names_no_form_takes_any_form_and_nothing_else(asked, gpu, is_it):
    assert is_asked_for(asked, gpu) is is_it
