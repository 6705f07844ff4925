"""Life cycle: copies, files, names, attributes and methods, retracing, devices.

Tested elsewhere, word for word: deepcopy, pickle, torch.save and averages of prepared and converted networks, before
the first batch and at any other moment (tests/test_wrapper_copies.py, tests/graph/test_program.py); states on disk and
resumed calibrations (tests/test_checkpoint.py, tests/test_resume.py); attributes that are preserved, and preparing in
either mode (tests/test_fx.py); evaluation that observes nothing (tests/test_wrapper_eval.py); freezing observers and
norms (tests/test_wrapper_epochs.py); dropout in training (tests/test_wrapper_calibration.py); autocast and compiling
(tests/test_integrations.py); several processes (tests/test_distributed.py); errors that show the line of a user's
forward (tests/graph/test_trace.py).
"""

import copy
import pickle

import pytest
import torch
from torch import fx, nn

import edgeq
from edgeq import QConfigMapping, convert_fx, prepare_fx, prepare_qat_fx
from edgeq.graph.convert import ConvertedModule
from edgeq.graph.prepared import PreparedModule
from tests.graph.parity import images
from tests.networks import NETWORKS, batches, network
from tests.scenarios.wired import conv, quantizers
from tests.states import snapshot


@pytest.mark.parametrize("name", NETWORKS)
def test_every_key_of_a_state_says_which_module_or_tensor_it_is_of(name):
    model = network(name)
    wrapped = edgeq.PTCFxModule(model).calibrate(batches(1))
    paths = {path.replace(".", "_") for path, _ in model.named_modules()} | {"x"}
    nodes = {node.name for node in fx.symbolic_trace(model).graph.nodes}
    assert {*quantizers(wrapped)} <= paths | nodes
    for key in wrapped.module.state_dict().keys() - model.state_dict().keys():
        owner, _, rest = key.partition(".weight_quantizer.")
        if rest or key.endswith(".bias_shift"):
            assert isinstance(model.get_submodule(owner.removesuffix(".bias_shift")), nn.Conv2d | nn.Linear)
        else:
            assert key.startswith(("quantization.schedule.", "quantization.tensors.", "quantization.layers."))
    converted = wrapped.convert().module
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for path in layers:
        assert converted.state_dict()[f"{path}.weight"].dtype is torch.int8
        assert converted.state_dict()[f"{path}.weight"].shape == model.get_submodule(path).weight.shape


def test_neither_the_users_modules_nor_the_integer_network_carry_settings_about():
    model = network("residual")
    attributes = {path: {*vars(module)} for path, module in model.named_modules()}
    wrapped = edgeq.PTCFxModule(model, QConfigMapping().set_module_name("fc", None).qconfig()).calibrate(batches(1))
    assert {path: {*vars(module)} for path, module in model.named_modules()} == attributes
    for module in (*wrapped.module.modules(), *wrapped.convert().module.modules()):
        assert not {"activation_post_process", "weight_fake_quant"} & {*vars(module), *module._modules}
        assert ("qconfig" in vars(module)) is isinstance(module, PreparedModule | ConvertedModule)


# ---- attributes and methods


class Classifier(nn.Sequential):
    """A network with methods that its users call."""

    def __init__(self):
        super().__init__(conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
        self.classes, self.calls = ["cat", "dog", "bird"], 0

    def predict(self, x, top=1):
        self.calls += 1
        return [[self.classes[int(index)] for index in row] for row in self(x).topk(top).indices]

    @staticmethod
    def size():
        return 8

    @classmethod
    def kind(cls):
        return cls.__name__


KEPT = ["classes", "calls", "predict", "size", "kind"]


@pytest.mark.parametrize("prepare", [prepare_fx, prepare_qat_fx])
def test_preserved_methods_work_on_the_quantized_network(prepare):
    model, x = Classifier().eval(), images(16, 3, 8, 8)
    prepared = prepare(model, "WC8_AT8", preserved_attributes=KEPT).train()
    prepared(x)
    prepared.eval()
    converted = convert_fx(prepared)
    expected = [[model.classes[int(index)] for index in row] for row in converted(x).topk(2).indices]
    for one in (converted, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert one.predict(x, top=2) == expected
        assert (one.calls, one.size(), one.kind()) == (1, 8, "Classifier")
        assert one.predict.network is one
    assert prepared.predict.network is prepared
    assert [prepared.calls, model.calls] == [0, 0]
    twin = copy.deepcopy(prepared)
    assert twin.predict.network is twin
    assert sum(one == other for one, other in zip(model.predict(x), twin.predict(x), strict=True)) >= 14


# ---- other tools of PyTorch


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("convert", [False, True])
def test_the_graph_can_be_transformed_interpreted_and_exported(name, convert):
    wrapped, image = edgeq.PTCFxModule(network(name)).calibrate(batches(1)), batches(1, 5)[0]
    program = (wrapped.convert() if convert else wrapped).module
    module = fx.GraphModule(program.tree, program.fx_graph)
    with torch.no_grad():
        expected = program(image)
        assert torch.equal(module(image), expected)
        assert torch.equal(fx.Transformer(module).transform()(image), expected)
        assert torch.equal(fx.Interpreter(module).run(image), expected)
        assert torch.equal(torch.export.export(program, (image,)).module()(image), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_prepared_network_can_be_recorded_by_the_older_compiler(name):
    """A network of integers cannot: its kernels are not among the older compiler's operations."""
    wrapped, image = edgeq.PTCFxModule(network(name)).calibrate(batches(1)), batches(1, 5)[0]
    with torch.no_grad():
        recorded = torch.jit.trace(wrapped, image, check_trace=False)
        for other in (image, batches(1, 6)[0]):
            assert torch.equal(recorded(other), wrapped(other))


def test_observing_and_quantizing_can_be_switched_over_and_over():
    wrapped = edgeq.QATFxModule(network("separable").train(), "WC8_AT8", total_epochs=20).train()
    scales = []
    for epoch in range(3):
        for observing in (True, False):
            wrapped.freeze(freeze_observers=not observing)
            before = {key: value for key, value in snapshot(wrapped).items() if key.endswith("tensors.x.scale")}
            wrapped.train()(batches(1, epoch)[0] * (1 + epoch)).sum().backward()
            after = float(wrapped.module.quantization.tensors.x.scale)
            assert (after != float(*before.values())) is observing
        with torch.no_grad():
            wrapped.eval()
            assert torch.equal(wrapped(batches(1)[0]), wrapped.convert()(batches(1)[0]))
        scales.append(after)
    assert scales == sorted(scales)


# ---- devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_on_a_gpu_is_prepared_calibrated_and_trained_there(name):
    image = batches(1)[0].cuda()
    wrapped = edgeq.PTCFxModule(network(name).cuda())
    assert {value.device.type for value in wrapped.state_dict().values()} == {"cuda"}
    wrapped.calibrate([image])
    with torch.no_grad():
        assert torch.equal(wrapped(image), wrapped.convert()(image))
    training = edgeq.QATFxModule(network(name).cuda().train(), total_epochs=4).train()
    training(image).square().mean().backward()
    assert all(parameter.grad.is_cuda for parameter in training.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_device_may_change_between_preparation_and_conversion():
    wrapped = edgeq.PTCFxModule(network("residual").cuda()).calibrate([batches(1)[0].cuda()])
    wrapped = pickle.loads(pickle.dumps(wrapped)).cpu()
    with torch.no_grad():
        assert torch.equal(wrapped(batches(1)[0]), wrapped.convert()(batches(1)[0]))
