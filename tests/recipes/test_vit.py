"""The recipe for vision transformers, on handwritten digits as image files."""

from importlib.util import find_spec

import onnx
import pytest
import torch

import edgeq
from recipes.data import image_folder
from recipes.transformer import stages, vit
from tests.recipes.transformer_data import accuracies, read_table, train_in_three_ways, write_digits
from tests.states import changed

KINDS = 5  # the digits 0 to 4
SMALL = ["--size", "16", "--patch", "4", "--width", "48", "--layers", "2", "--heads", "4"]
DATA = ["--crop", "0.9", "--no-flip", "--workers", "0", "--batch-size", "32"]

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training in float, one of its calibration and one of a quantized training; what was printed."""
    folder = tmp_path_factory.mktemp("vit")
    arguments = ["--data-path", str(write_digits(folder / "digits", KINDS)), *SMALL, *DATA]
    rates = {"float": "--epochs 12 --lr 4e-3", "quantized": "--epochs 2 --lr 4e-4 --lr-warmup-epochs 0"}
    return folder, train_in_three_ways(vit.main, arguments, folder, **rates)


@pytest.mark.parametrize("way", ["calibrated", "quantized"])
def test_digits_are_recognized_in_float_simulated_and_in_onnx_runtime(trained, way):
    folder, printed = trained
    before = accuracies(printed, "float")[0]
    table = read_table(folder / way)
    names = ["float", "trained quantized", "converted", "ONNX Runtime, qdq", "ONNX Runtime, integer"]
    assert list(table) == names
    assert before > 88
    assert min(row[0] for row in table.values()) > before - 2
    assert table["converted"][4] == 100  # equal outputs
    assert table["ONNX Runtime, integer"][4] > 99
    assert min(row[1] for row in table.values()) > 96  # agreement with float


def test_every_product_of_an_attention_is_quantized(trained):
    lines = (trained[0] / "quantized" / "placement.txt").read_text().splitlines()
    layers = [line for line in lines if "8 bits symmetric channel" in line]
    products = [line for line in lines if ".self_attention.matmul" in line and "8 bits affine" in line]
    weights = [line for line in lines if line.startswith("quantize") and "softmax" in line]
    assert len([line for line in layers if line.startswith(("conv_proj", "encoder.", "heads."))]) == 1 + 2 * 6 + 1
    assert len(products) == 2 * 2
    assert [("fixed 0..1" in line) for line in weights] == [True, True]


def test_the_integer_file_multiplies_integers_and_takes_any_number_of_images(trained):
    model = onnx.load(trained[0] / "quantized" / "integer.onnx")
    products = [node.op_type for node in model.graph.node if node.op_type.endswith(("MatMul", "MatMulInteger", "Conv"))]
    assert sorted(set(products)) == ["MatMulInteger", "QLinearConv", "QLinearMatMul"]
    assert len(products) == 18
    (images,) = model.graph.input
    batch, *rest = images.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [dim.dim_value for dim in rest] == [3, 16, 16]


def test_the_weights_hold_every_key_of_the_float_model(trained):
    model = vit.network(vit.parse(["--data-path", "x", *SMALL]), KINDS)
    for way in ("float", "calibrated", "quantized"):
        state = torch.load(trained[0] / way / "weights.pth", weights_only=True)
        assert all(state[key].shape == value.shape for key, value in model.state_dict().items())
    wrapped = edgeq.QATFxModule(model, "MSA_WC8_AT8", total_epochs=2)
    assert wrapped.load_weights(trained[0] / "quantized" / "weights.pth", strict=True).complete


@pytest.mark.parametrize("way", [["--float"], []], ids=["float", "quantized"])
def test_a_training_resumes_in_the_same_numbers_whoever_reads_the_images(way, tmp_path):
    digits = write_digits(tmp_path / "digits", 3, 60)
    images = image_folder(digits, 16, batch=8, workers=1)

    def checkpoint(*more):
        options = vit.parse(["--data-path", "x", *SMALL, "--epochs", "3", "--output-dir", str(tmp_path), *way, *more])
        torch.manual_seed(0)
        stages.trained(vit.network(options, 3), images, options, torch.device("cpu"))
        return torch.load(tmp_path / "checkpoint.pth", weights_only=True)

    whole, resumed = checkpoint(), checkpoint("--resume", str(tmp_path / "model_0.pth"))
    assert whole["epoch"] == resumed["epoch"] == 2
    assert changed(whole["model"], resumed["model"]) == []
    for index, state in whole["optimizer"]["state"].items():
        assert changed(state, resumed["optimizer"]["state"][index]) == []


@needs_timm
def test_a_network_of_timms_goes_through_every_stage_by_its_name(tmp_path):
    digits = str(write_digits(tmp_path / "digits", KINDS, 160))
    arguments = ["--data-path", digits, "--model", "test_vit3", "--size", "32", "--epochs", "1", *DATA]
    assert vit.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    assert read_table(tmp_path / "out")["converted"][4] == 100
    assert "blocks.1.attn.matmul" in (tmp_path / "out" / "placement.txt").read_text()


@needs_timm
def test_a_name_that_nobody_knows_is_refused():
    options = vit.parse(["--data-path", "x", "--model", "vit_b_17"])
    with pytest.raises(ValueError, match="Neither torchvision nor timm has a network 'vit_b_17'"):
        vit.network(options, 10)
