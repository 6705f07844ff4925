"""What tests of every rewrite ask: that the function stays, in float, in training, in integers and in a file."""

import copy
import pickle

import torch
from torch import nn

import edgeq
from edgeq.modules.layer import QuantizedLayer
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, images


def lively(model):
    """The model in evaluation, its batch norms with parameters and statistics unlike those of fresh ones."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.3, generator=generator)
                with torch.no_grad():
                    module.weight[::3] *= -1
    return model.eval()


def only(name, options=True):
    """No rewrite but one."""
    return {**AS_WRITTEN, name: options}


def changes(model, name, *example, options=True, **settings):
    """The changes that one rewrite makes."""
    example = example if example else None
    wrapped = edgeq.PTCFxModule(model, rewrites=only(name, options), example_inputs=example, **settings)
    assert {change.rewrite for change in wrapped.module.changes.each} <= {name}
    return wrapped.module.changes.each


def kinds(wrapped):
    """What the prepared graph calls, in order, quantizers aside."""
    network = wrapped.module
    found = []
    for node in network.fx_graph.nodes:
        if node.op == "call_module" and not str(node.target).startswith("quantization.tensors"):
            found.append(type(network.get_submodule(node.target)).__name__)
        elif node.op in ("call_function", "call_method"):
            found.append(getattr(node.target, "__name__", node.target))
    return found


def layers_of(wrapped):
    """The quantized layers in the order in which they are called."""
    network = wrapped.module
    called = [network.get_submodule(node.target) for node in network.fx_graph.nodes if node.op == "call_module"]
    return [module for module in called if isinstance(module, QuantizedLayer)]


def assert_same_function(make, name, *inputs, preset="WC8_AT8", bound=1e-5, options=True):
    """The float function, with the rewrite and after it has been copied, is that of the model; the converted network
    gives what the prepared one gives. Returns the calibrated wrapper.
    """
    model = make()
    with torch.no_grad():
        expected = model(*inputs)
    wrapped = calibrated(make(), *inputs, preset=preset, rewrites=only(name, options), example_inputs=inputs)
    found = edgeq.PTCFxModule(make(), preset, rewrites=only(name, options), example_inputs=inputs)
    assert found.module.changes.each
    assert all(change.difference <= bound * max(1, change.size) for change in found.module.changes.each)
    with torch.no_grad():
        assert (found.module.run_float(*inputs) - expected).abs().max() <= bound * expected.abs().max()
    assert found.module.changes.difference <= bound * expected.abs().max()
    (simulated,) = assert_exact(wrapped, *inputs)
    assert set(wrapped.module.state_dict()) >= set(model.state_dict())
    with torch.no_grad():
        for copied in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
            assert torch.equal(copied(*inputs), simulated)
            assert copied.module.changes == wrapped.module.changes
    return wrapped


def assert_trains_as_float(make, name, *shape, batches=3, similar=0.98):
    """In training with live batch norms: the same statistics as the float network's to float precision where nothing
    is quantized, and gradients that point the same way where all is.
    """
    model, reference = make().train(), make().train()
    given = dict(model.named_parameters())
    wrapped = edgeq.QATFxModule(model, total_epochs=8, num_observer_update_epochs=0, rewrites=only(name)).train()
    assert wrapped.module.changes.each
    assert all(parameter is given[key] for key, parameter in wrapped.module.named_parameters())
    for seed in range(batches):
        x = images(*shape, seed=seed)
        assert torch.allclose(wrapped(x), reference(x), rtol=1e-4, atol=1e-4)
    state = model.state_dict()
    for key, value in reference.state_dict().items():
        assert torch.allclose(state[key].float(), value.float(), rtol=1e-4, atol=1e-5), key
    model, reference = make().train(), make().train()
    wrapped = edgeq.QATFxModule(model, total_epochs=8, rewrites=only(name)).train()
    target = images(*reference(images(*shape)).shape, seed=7)
    for network in (wrapped, reference):
        (network(images(*shape)) * target).mean().backward()
    for (key, parameter), other in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert other.grad is not None, key
        if parameter.grad.norm() > 1e-6:  # not the bias of a layer before a live norm, which does nothing
            similarity = torch.cosine_similarity(parameter.grad.flatten(), other.grad.flatten(), dim=0)
            assert similarity > similar, (key, float(similarity))
    for key, value in wrapped.module.state_dict().items():
        assert not torch.is_floating_point(value) or value.isfinite().all(), key
    assert_exact(wrapped.eval(), images(*shape))


def assert_files_agree(wrapped, *inputs, folder):
    """Both files compute the integers of the network, in ONNX Runtime with and without its fusions."""
    for kind in ("qdq", "integer"):
        result = wrapped.export(inputs, folder / f"{kind}.onnx", format=kind)
        assert result.passed, result
    assert all(parity.passed for parity in result.parity)
