"""prepare_fx, prepare_qat_fx and convert_fx."""

import copy
import logging
import pickle
import warnings

import pytest
import torch

import edgeq
from edgeq import QConfigMapping, SpecError, convert_fx, prepare_fx, prepare_qat_fx
from tests.graph.parted import Plain, data, detector
from tests.networks import NETWORKS, batches, network
from tests.states import changed, snapshot, train_step


def refusal(make):
    with pytest.raises(SpecError) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize("training", [True, False])
def test_prepare_leaves_the_mode_the_model_and_its_results_as_they_are(training):
    model, image = network("residual").train(training), batches()[0]
    state = snapshot(model)
    prepared = prepare_fx(model, "DEFAULT", (image,))
    assert (prepared.training, model.training) == (training, training)
    assert changed(state, model) == []
    torch.testing.assert_close(prepared(image), network("residual")(image), rtol=1e-5, atol=1e-6)
    assert changed(state, model) == []  # an observation moves no statistics


@pytest.mark.parametrize("name", NETWORKS)
def test_calibration_in_any_mode_comes_to_the_same_as_the_wrappers(name):
    image, results = batches(1, 9)[0], []
    for mode in (None, True, False):
        prepared = prepare_fx(network(name), "WC8_AT8", batches()[0])
        if mode is not None:
            prepared.train(mode)
        for batch in batches():
            prepared(batch)
        results.append(convert_fx(prepared)(image))
    expected = edgeq.PTCFxModule(network(name), "WC8_AT8").calibrate(batches()).convert()(image)
    assert all(torch.equal(result, expected) for result in results)


def test_a_prepared_network_observes_on_after_a_conversion_and_a_change_of_mode():
    once, later = batches(2)
    prepared = prepare_fx(network("residual"), {"activation": {"observer": "minmax"}, "weight": {}})
    prepared(once)
    convert_fx(prepared)
    prepared.eval()
    prepared(5 * later)
    scale = dict(convert_fx(prepared).module.state_dict())["quantization.tensors.x.scale"]
    low, high = min(once.min(), 5 * later.min()), max(once.max(), 5 * later.max())
    assert torch.equal(scale, high / 255 - low / 255)


def test_nothing_is_said_when_all_is_well(caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG, "edgeq"):
        warnings.simplefilter("error")
        prepared = prepare_fx(network("residual").eval(), QConfigMapping(), (batches()[0],))
        prepared.eval()
        with torch.inference_mode():
            for batch in batches():
                prepared(batch)
        convert_fx(prepared)(batches()[0])
    assert [record.message for record in caplog.records] == []


def test_a_conversion_without_calibration_is_refused():
    with pytest.raises(edgeq.CalibrationError, match="The network has no ranges yet: run at least one batch"):
        convert_fx(prepare_fx(network("residual")))


def test_training_adapts_ranges_and_statistics_until_it_is_frozen():
    model = network("residual").train()
    prepared = prepare_qat_fx(model, QConfigMapping().set_global("WC8_AT8"), batches()[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    moving = []
    for frozen in (False, False, True):
        if frozen:
            prepared.freeze()
        before = snapshot(prepared)
        prepared.train()
        for batch in batches():
            train_step(prepared, optimizer, 3 * batch)
        moved = set(changed(before, prepared))
        moving.append(("module.bn1.running_mean" in moved, "module.quantization.tensors.x.scale" in moved))
        assert "module.conv1.weight" in moved
    assert moving == [(True, True), (True, True), (False, False)]
    prepared.eval()
    assert torch.equal(prepared(batches()[0]), convert_fx(prepared)(batches()[0]))


@pytest.mark.parametrize("prepare", [prepare_fx, prepare_qat_fx])
def test_preserved_attributes_go_along_to_the_integer_network(prepare):
    model = network("residual").train()
    model.classes, model.unused = ["cat", "dog"], 1
    prepared = prepare(model, "DEFAULT", preserved_attributes=["classes"])
    prepared.train()(batches()[0])
    converted = convert_fx(prepared)
    for network_ in (prepared, converted, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert network_.classes == ["cat", "dog"]
        assert not hasattr(network_, "unused")


def test_an_attribute_that_is_not_there_or_taken_is_refused():
    model = network("residual")
    assert refusal(lambda: prepare_fx(model, preserved_attributes=["classes"])) == (
        "preserved_attributes names 'classes', which Residual does not have."
    )
    assert refusal(lambda: prepare_fx(model, preserved_attributes=["training"])) == (
        "preserved_attributes names 'training', which is edgeq's own on a quantized network."
    )


# ---- parts and standalone modules


@pytest.mark.parametrize("options", [{"submodules": ["backbone", "head"]}, {"standalone": ["head"]}], ids=str)
@pytest.mark.parametrize("training", [None, True, False])
def test_parts_are_calibrated_in_any_mode_and_come_to_the_same(options, training):
    prepared = prepare_fx(detector(Plain), "WC8_AT8", data()[0], **options)
    if training is not None:
        prepared.train(training)
    for batch in data():
        prepared(batch)
    converted = convert_fx(prepared)
    expected = edgeq.PTCFxModule(detector(Plain), "WC8_AT8", **options).calibrate(data()).convert()
    assert torch.equal(converted(data()[0]), expected(data()[0]))
    prepared(5 * data()[1])  # it observes on
    assert not torch.equal(convert_fx(prepared)(data()[0]), expected(data()[0]))


@pytest.mark.parametrize("options", [{"submodules": ["backbone", "head"]}, {"standalone": ["head"]}], ids=str)
def test_parts_are_trained_until_they_are_frozen(options):
    prepared = prepare_qat_fx(detector(Plain).train(), "WC8_AT8", data()[0], **options).train()
    moving = []
    for frozen in (False, True):
        if frozen:
            prepared.freeze()
        before = snapshot(prepared)
        with torch.no_grad():
            prepared(3 * data()[0])
        moving.append([key for key in changed(before, prepared) if ".schedule." not in key])
    assert {"module.head.hidden.norm.running_mean", "module.norm.running_mean"} <= {*moving[0]}
    assert moving[1] == []
    prepared.eval()
    assert torch.equal(prepared(data()[0]), convert_fx(prepared)(data()[0]))


@pytest.mark.parametrize("options", [{"submodules": ["backbone", "head"]}, {"standalone": ["head"]}], ids=str)
def test_a_mapping_at_the_conversion_is_for_networks_that_are_quantized_as_a_whole(options):
    mapping = QConfigMapping().set_global("WC8_AT8")
    prepared = prepare_fx(detector(Plain), mapping, data()[0], **options)
    prepared(data()[0])
    message = refusal(lambda: convert_fx(prepared, mapping.set_module_name("head.out", None)))
    assert message == (
        "qconfig_mapping is for a network that is quantized as a whole; of this one, submodules are quantized by "
        "themselves. Leave in float what is to stay so when it is prepared."
    )


def test_preserved_methods_work_on_a_network_with_parts():
    prepared = prepare_fx(detector(), "WC8_AT8", submodules=["backbone", "head"], preserved_attributes=["predict"])
    prepared(data()[0])
    converted = convert_fx(prepared)
    for module in (converted, copy.deepcopy(converted)):
        assert torch.equal(module.predict(data()[0]), converted(data()[0]).argmax(1))
