"""Every preset, every network, both formats: the integers of the network against those of ONNX Runtime, counted
here and not by edgeq.
"""

from itertools import product

import numpy as np
import pytest
import torch

from edgeq.modules.layer import QuantizedLayer
from edgeq.quantizers.tensor import TensorQuantizer
from tests.networks import NETWORKS, batches
from tests.onnx.ort import (
    FREE,
    POWER_OF_TWO,
    calibrated,
    codes_of,
    converted,
    differences,
    exported,
    image,
    numbers,
    run,
    written,
)
from tests.test_presets import CALIBRATED

# What a runtime computes in its own way, judged on its own inputs: at most one step, in this share of the elements.
OWN_WAY = {"softmax/codes": 0.02, "norm1/codes": 0.002, "norm2/codes": 0.002, "gelu/codes": 0.002}
TENSORS = {"residual": 8, "separable": 9, "attention": 24}


def every_file(presets):
    return list(product(presets, NETWORKS, ("qdq", "integer"), (False, True)))


@pytest.mark.parametrize(("preset", "name", "kind", "fused"), every_file(POWER_OF_TWO))
def test_with_power_of_two_scales_no_integer_of_any_tensor_differs(preset, name, kind, fused):
    module, x = converted(name, preset), image(16)
    theirs = run(exported(name, preset, kind, 16), x, fused=fused)
    inherited = differences(codes_of(module, x), theirs)
    assert len(inherited) == TENSORS[name]
    local = differences(codes_of(module, x, given=theirs), theirs)
    for tensor, steps in local.items():
        assert steps.max() <= (tensor in OWN_WAY), tensor
        assert np.count_nonzero(steps) <= OWN_WAY.get(tensor, 0) * steps.size, tensor
    if not any(local[tensor].any() for tensor in OWN_WAY if tensor in local):
        assert sum(int(steps.sum()) for steps in inherited.values()) == 0


@pytest.mark.parametrize(("preset", "name", "kind", "fused"), every_file(FREE))
def test_with_free_scales_each_operation_is_one_step_off_at_ties_at_most(preset, name, kind, fused):
    module, x = converted(name, preset), image(16)
    theirs = run(exported(name, preset, kind, 16), x, fused=fused)
    local = differences(codes_of(module, x, given=theirs), theirs)
    assert len(local) == TENSORS[name]
    for tensor, steps in local.items():
        assert steps.max() <= 1, tensor
        assert np.count_nonzero(steps) <= OWN_WAY.get(tensor, 0.0002) * steps.size + 1, tensor


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("preset", CALIBRATED)
def test_the_integer_file_equals_the_converted_module_bit_for_bit(preset, name):
    module, x = converted(name, preset), image(16)
    theirs = run(exported(name, preset, "integer", 16), x, fused=False)
    local = differences(codes_of(module, x, given=theirs), theirs)
    assert {tensor for tensor, steps in local.items() if steps.any()} <= set(OWN_WAY)
    if not any(steps.any() for steps in local.values()):
        assert not any(steps.any() for steps in differences(codes_of(module, x), theirs).values())
        assert np.array_equal(module(x).numpy(), theirs["output"])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("preset", ["DEFAULT", "WT8SYMP2_AT8SYMP2"])
def test_what_is_simulated_before_conversion_is_what_the_file_computes(preset, name):
    wrapped, x, model = calibrated(name, preset), image(16), exported(name, preset, size=16)
    theirs, parameters, simulated, hooks = run(model, x, fused=False), numbers(model), {}, []
    for path, module in wrapped.module.named_modules():
        if isinstance(module, QuantizedLayer | TensorQuantizer):
            path = path.removeprefix("quantization.tensors.")
            hooks.append(module.register_forward_hook(lambda m, a, y, path=path: simulated.update({path: y.numpy()})))
    with torch.no_grad():
        wrapped(x)
    for hook in hooks:
        hook.remove()
    compared = [path for path in simulated if f"{path}/codes" in theirs]
    assert len(compared) >= {"residual": 7, "separable": 8, "attention": 13}[name]
    for path in compared:
        scale, zero_point = parameters[f"{path}_scale"], parameters[f"{path}_zero_point"].astype(np.float32)
        assert np.array_equal(simulated[path], (theirs[f"{path}/codes"] - zero_point) * scale), path


@pytest.mark.parametrize(("kind", "fused"), [("qdq", False), ("qdq", True), ("integer", False), ("integer", True)])
def test_edgeqs_own_comparison_counts_what_is_counted_here(kind, fused, tmp_path):
    module, x = converted("residual", "WC4_AT8"), image(16)
    result = module.export(x, tmp_path / "model.onnx", format=kind)
    parity = result.parity[fused]
    assert parity.runtime == ("fused" if fused else "unfused")
    steps = differences(codes_of(module, x), run(exported("residual", "WC4_AT8", kind, 16), x, fused=fused))
    assert {f"{tensor.name}/codes": tensor.elements for tensor in parity.tensors} == {
        k: v.size for k, v in steps.items()
    }
    assert parity.unequal == sum(np.count_nonzero(values) for values in steps.values())
    assert parity.images == 16


@pytest.mark.parametrize("name", NETWORKS)
def test_a_thousand_images_end_in_the_same_class_as_often_as_float_and_double_precision_would(name):
    module = converted(name)
    model = exported(name, dynamic_batch=True)
    same = sum(
        int((module(x).argmax(1).numpy() == run(model, x, fused=True)["output"].argmax(1)).sum())
        for x in batches(4, seed=50, size=250)
    )
    assert same >= 995


def network_equals_file(name, preset, seed):
    module, x = converted(name, preset, seed), image(8, 100 + seed)
    theirs = run(written(module, x, format="integer", verify=False), x, fused=False)
    with torch.no_grad():
        assert torch.equal(calibrated(name, preset, seed)(x), module(x))
    local = differences(codes_of(module, x, given=theirs), theirs)
    assert {tensor for tensor, steps in local.items() if steps.any()} <= set(OWN_WAY)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", NETWORKS)
def test_other_weights_and_other_data_change_nothing(name, seed):
    network_equals_file(name, CALIBRATED[seed], seed)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(4, 104))
@pytest.mark.parametrize("name", NETWORKS)
def test_a_hundred_seeds_change_nothing(name, seed):
    network_equals_file(name, CALIBRATED[seed % 10], seed)
