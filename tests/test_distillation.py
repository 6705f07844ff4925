"""Learning from the float model beside the user's own loss, in an unchanged loop."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.distillation import Distillation
from edgeq.errors import SpecError
from tests.networks import batches, network

DATA = batches(4, seed=5)


def without_dropout(model):
    """The model, with dropouts that let all through: they draw anew in each forward."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def wrapped(distillation, name="residual", **options):
    return edgeq.QATFxModule(
        without_dropout(network(name)), "WC8_AT8", total_epochs=2, distillation=distillation, **options
    )


def gradients(model, loss):
    model.zero_grad()
    loss(model).backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}


def divergence(temperature):
    def loss(student, teacher):
        soft = [torch.log_softmax(y / temperature, -1) for y in (student, teacher)]
        return F.kl_div(soft[0], soft[1], log_target=True, reduction="sum") * temperature**2 / len(student)

    return loss


CLOSED_FORMS = {
    "a weight": (0.5, lambda s, t: 0.5 * divergence(2.0)(s, t)),
    "temperature": ({"weight": 3.0, "temperature": 4.0}, lambda s, t: 3.0 * divergence(4.0)(s, t)),
    "squared error": ({"loss": "squared_error"}, F.mse_loss),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_gradients_are_those_of_the_users_loss_and_the_distillations(name):
    settings, distillation = CLOSED_FORMS[name]
    teacher, plain, taught = network("residual").eval(), wrapped(None), wrapped(settings)
    target = torch.arange(len(DATA[0])) % 4
    for model in (plain, taught):
        model.train()
        model(DATA[1])  # ranges

    def own(model):
        return F.cross_entropy(model(DATA[0]), target)

    def both(model):
        output = model(DATA[0])
        return F.cross_entropy(output, target) + distillation(output, teacher(DATA[0]).detach())

    expected, found = gradients(plain, both), gradients(taught, own)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.allclose(value, found[key], rtol=1e-4, atol=1e-7), key


def test_outputs_losses_and_state_are_those_without():
    plain, taught = wrapped(None), wrapped(1.0)
    for model in (plain, taught):
        model.train()
    assert torch.equal(plain(DATA[0]), taught(DATA[0]))
    assert list(plain.state_dict()) == list(taught.state_dict())
    assert [p.shape for p in plain.parameters()] == [p.shape for p in taught.parameters()]
    assert torch.equal(plain.eval()(DATA[0]), taught.eval()(DATA[0]))
    assert torch.equal(taught.convert()(DATA[0]), taught(DATA[0]))


def test_outputs_may_be_written_into():
    plain, changed = (wrapped(distillation=1.0).train() for _ in range(2))
    (plain(DATA[0]) / 2).square().sum().backward()
    outputs = changed(DATA[0])
    outputs /= 2
    outputs.square().sum().backward()
    for one, other in zip(plain.parameters(), changed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_student_that_is_only_taught_comes_nearer_to_the_float_model():
    model = edgeq.QATFxModule(
        network("residual"), "WC4_AT8", total_epochs=4, distillation={"weight": 1.0, "loss": "squared_error"}
    )
    teacher = network("residual").eval()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    distances = []
    for _ in range(30):
        model.train()
        for x in DATA:
            output = model(x)
            distances.append(F.mse_loss(output, teacher(x)).item())
            optimizer.zero_grad()
            (0.0 * output.sum()).backward()
            optimizer.step()
    assert sum(distances[-4:]) < 0.7 * sum(distances[:4])


def test_the_teacher_stays_what_it_was_while_the_student_moves():
    model = wrapped(1.0).train()
    before = model.teacher.model(DATA[0])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(DATA[0]).square().mean().backward()
    optimizer.step()
    assert torch.equal(model.teacher.model(DATA[0]), before)
    assert not any(parameter.requires_grad for parameter in model.teacher.model.parameters())


def test_a_scaled_loss_is_matched():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    target = torch.arange(len(DATA[0])) % 4
    plain, scaled = wrapped(1.0), wrapped(1.0)
    scaled.use_grad_scaler(scaler)
    found = []
    for model in (plain, scaled):
        model.train()
        model(DATA[1])
        factor = 1.0 if model is plain else 1024.0
        found.append(gradients(model, lambda m, f=factor: f * F.cross_entropy(m(DATA[0]), target)))
    for key, value in found[0].items():
        assert torch.allclose(1024 * value, found[1][key], rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_taught_too(twin):
    model = wrapped(1.0).train()
    model(DATA[0])
    other = twin(model)
    found = [gradients(each, lambda m: m(DATA[0]).square().mean()) for each in (model, other)]
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_the_teacher_goes_where_the_student_goes():
    model = wrapped(1.0).to(torch.float64)
    assert all(parameter.dtype is torch.float64 for parameter in model.teacher.model.parameters())


@pytest.mark.parametrize(("value", "message"), [
    (-1.0, "weight"),
    ("much", "weight or a dict"),
    (True, "weight or a dict"),
    ({"wieght": 1.0}, "wieght"),
    ({"loss": "divergance"}, "divergence"),
    ({"temperature": 0.0}, "temperature"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(value, message):
    with pytest.raises(SpecError, match=message):
        wrapped(value)


def test_a_model_that_returns_something_else_in_training_is_refused():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return (self.one(x), self.two(x)) if self.training else self.one(x)

    x = torch.randn(3, 4)
    model = edgeq.QATFxModule(Heads().train(), total_epochs=1, distillation=1.0).train()
    outputs = model(x)
    assert not isinstance(outputs, tuple)  # the captured network is that of evaluation


def test_settings_are_read_from_all_forms():
    assert Distillation.from_data(2) == Distillation(weight=2.0)
    assert Distillation.from_data({"weight": 0.1, "temperature": 3.0}) == Distillation(0.1, "divergence", 3.0)
    assert Distillation.from_data(Distillation(0.5)) == Distillation(0.5)
