"""The recipe for text classifiers, on sentences whose label follows a rule."""

from importlib.util import find_spec

import onnx
import pytest
import torch

import edgeq
from recipes.transformer import stages, text
from recipes.transformer.texts import batches, read
from recipes.transformer.tokenizer import PADDING, Tokenizer
from tests.recipes.transformer_data import accuracies, read_table, train_in_three_ways, write_sentences
from tests.states import changed

SIZES = ["--max-length", "24", "--width", "32", "--layers", "2", "--heads", "4"]
PRESET = "MSA_WC8_AT8"

needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sentences(tmp_path_factory.mktemp("sentences"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a training in float, one of its calibration and one of a quantized training; what was printed."""
    folder = tmp_path_factory.mktemp("text")
    rates = {"float": "--epochs 10 --lr 1e-2", "quantized": "--epochs 2 --lr 1e-3 --lr-warmup-epochs 0"}
    return folder, train_in_three_ways(text.main, ["--data-path", str(data), *SIZES], folder, **rates)


@pytest.fixture(scope="module")
def networks(data, trained):
    """The trained float network, the same one calibrated on sentences that are padded to 24 tokens, and sentences
    with their numbers of tokens.
    """
    weights = trained[0] / "float" / "weights.pth"
    tokenizer = Tokenizer.load(weights.with_name("vocabulary.json"))
    model = text.network(text.parse(["--data-path", "x", *SIZES]), len(tokenizer), 2)
    edgeq.load_weights(model, weights, strict=True)
    texts = batches(*read(data), tokenizer, 24)
    calibrated = edgeq.PTCFxModule(model.eval(), PRESET).calibrate(texts.calibration)
    tokens = torch.cat([batch for batch, _ in texts.test])
    return model, calibrated, tokens, (tokens != PADDING).sum(1)


@pytest.mark.parametrize("way", ["calibrated", "quantized"])
def test_sentences_are_understood_in_float_simulated_and_in_onnx_runtime(trained, way):
    folder, printed = trained
    before = accuracies(printed, "float")[0]
    table = read_table(folder / way)
    names = ["float", "trained quantized", "converted", "ONNX Runtime, qdq", "ONNX Runtime, integer"]
    assert list(table) == names
    assert before > 97
    assert min(row[0] for row in table.values()) > before - 1
    assert table["converted"][4] == 100  # equal outputs
    assert table["ONNX Runtime, integer"][4] > 99


@pytest.mark.parametrize("form", ["qdq", "integer"])
def test_the_file_takes_any_number_of_texts_as_token_ids(trained, form):
    (tokens,) = onnx.load(trained[0] / "quantized" / f"{form}.onnx").graph.input
    assert tokens.type.tensor_type.elem_type == onnx.TensorProto.INT64
    batch, length = tokens.type.tensor_type.shape.dim
    assert batch.dim_param
    assert length.dim_value == 24


def test_every_product_of_an_attention_is_quantized(trained):
    lines = (trained[0] / "quantized" / "placement.txt").read_text().splitlines()
    layers = [line for line in lines if "8 bits symmetric channel" in line]
    products = [line for line in lines if ".self_attn.matmul" in line and "8 bits affine" in line]
    assert len([line for line in layers if line.startswith(("encoder.", "head"))]) == 2 * 6 + 1
    assert len(products) == 2 * 2


def test_padding_does_not_change_what_the_float_network_says(networks):
    model, _, tokens, lengths = networks
    short = tokens[lengths <= 16]
    with torch.no_grad():
        assert torch.allclose(model(short[:, :16]), model(short), atol=1e-5)
        assert torch.allclose(model(short[:1, : lengths[lengths <= 16][0]]), model(short[:1]), atol=1e-5)


def test_padding_does_not_change_what_the_quantized_network_says(networks):
    _, calibrated, tokens, lengths = networks
    short = tokens[lengths <= 16]
    assert len(short) > 100
    converted = calibrated.convert()
    with torch.no_grad():
        for network in (calibrated, converted):
            assert torch.equal(network(short[:, :16]), network(short))


def test_no_mask_is_in_any_range(networks):
    model, calibrated, tokens, lengths = networks
    ranges = [(tensor.scale * 255).item() for tensor in calibrated.module.quantizers() if tensor.observed]
    assert min(ranges) > 0
    assert max(ranges) < 100  # a mask of -inf, or of the -1e9 that stands for it, would be far beyond
    few = tokens[lengths <= 12][:64, :12]
    unpadded = [row[row != PADDING][None] for row in few]
    with_masks = edgeq.PTCFxModule(model, PRESET, bias_calibration_factor=0).calibrate(list(few[:, None]))
    without = edgeq.PTCFxModule(model, PRESET, bias_calibration_factor=0).calibrate(unpadded)
    for (name, one), other in zip(
        with_masks.module.quantization.tensors.named_children(), without.module.quantizers(), strict=True
    ):
        assert one.scale < 2 * other.scale, name


def test_weights_bring_their_vocabulary(trained, tmp_path):
    few, weights = write_sentences(tmp_path / "few", train=40, test=40), trained[0] / "float" / "weights.pth"
    arguments = ["--data-path", str(few), *SIZES, "--weights", str(weights), "--test-only", "--float"]
    assert text.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    vocabulary = weights.with_name("vocabulary.json").read_text()
    assert (tmp_path / "out" / "vocabulary.json").read_text() == vocabulary


@pytest.mark.parametrize("way", [["--float"], []], ids=["float", "quantized"])
def test_a_training_resumes_in_the_same_numbers(way, data, tmp_path):
    rows, held_out = read(data)
    tokenizer = Tokenizer.build(text for text, _ in rows)
    texts = batches(rows[:80], held_out[:20], tokenizer, 24, batch=16)

    def checkpoint(*more):
        options = text.parse(["--data-path", "x", *SIZES, "--epochs", "3", "--output-dir", str(tmp_path), *way, *more])
        torch.manual_seed(0)
        stages.trained(text.network(options, len(tokenizer), 2), texts, options, torch.device("cpu"))
        return torch.load(tmp_path / "checkpoint.pth", weights_only=True)

    whole, resumed = checkpoint(), checkpoint("--resume", str(tmp_path / "model_0.pth"))
    assert whole["epoch"] == resumed["epoch"] == 2
    assert changed(whole["model"], resumed["model"]) == []
    for index, state in whole["optimizer"]["state"].items():
        assert changed(state, resumed["optimizer"]["state"][index]) == []


@needs_transformers
def test_an_encoder_of_hugging_faces_masks_its_padding_too():
    options = text.parse(["--data-path", "x", *SIZES, "--model", "distilbert"])
    torch.manual_seed(0)
    model = text.network(options, 30, 3).eval()
    tokens = torch.randint(3, 30, (4, 24))
    tokens[:, 15:] = PADDING
    with torch.no_grad():
        assert model(tokens).shape == (4, 3)
        assert torch.allclose(model(tokens), model(tokens[:, :15]), atol=1e-6)


@needs_transformers
def test_an_encoder_of_hugging_faces_goes_through_every_stage(tmp_path):
    data = write_sentences(tmp_path / "few", train=80, test=20)
    arguments = ["--data-path", str(data), *SIZES, "--model", "bert", "--epochs", "1", "--preset", "MSA_WC8P2_AT8P2"]
    assert text.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    placement = (tmp_path / "out" / "placement.txt").read_text()
    assert placement.count("self.matmul") == 2 * 2
    assert read_table(tmp_path / "out")["converted"][4] == 100
