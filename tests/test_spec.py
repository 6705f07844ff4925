"""What a spec accepts, and which rule decides about a layer."""

import dataclasses

import pytest

from edgeq import QConfig, SpecError, TensorSpec
from edgeq.arithmetic import PowerOfTwoRule, Sign
from edgeq.spec import WEIGHT, BiasSpec, Method, Place, Rule, ScaleKind


def refusal(make):
    with pytest.raises(SpecError) as error:
        make()
    return str(error.value)


def test_a_spec_takes_the_words_of_a_file():
    words = TensorSpec(bits=4, scale="power_of_two", sign="signed", range_max=4, observer="squared_error")
    assert words == TensorSpec(
        4, Sign.SIGNED, scale=ScaleKind.POWER_OF_TWO, range_max=4.0, observer=Method("squared_error")
    )
    assert words.rule is PowerOfTwoRule.CEIL
    assert TensorSpec(power_of_two_rule="floor").rule is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorSpec(bits=1), "TensorSpec.bits must lie in 2..16, got 1."),
        (lambda: TensorSpec(bits=8.0), "TensorSpec.bits must be int, got 8.0."),
        (lambda: TensorSpec(scale="pow2"), "TensorSpec.scale is 'pow2'. Known: free, power_of_two."),
        (lambda: TensorSpec(observer="minmx"), "observer: Unknown observer 'minmx'. Did you mean 'minmax'?"),
        (lambda: TensorSpec(observer={"option": 1}), "TensorSpec.observer must be a name or a table with a name,"),
        (lambda: TensorSpec(observer=Method("minmax", (("p", 1),))), "Unknown key 'p' in observer (minmax)."),
        (lambda: TensorSpec(bits=2, reduce_range=True), "bits is 2, of which reduce_range leaves one"),
        (lambda: BiasSpec(64), "BiasSpec.bits must lie in 8..32, got 64."),
        (lambda: QConfig(weight=TensorSpec()), "The weight must be symmetric and signed"),
        (
            lambda: QConfig(activation=TensorSpec(granularity="channel")),
            "The activation must have granularity 'tensor'",
        ),
        (lambda: QConfig(recovery=("gptq",)), "Unknown recovery step 'gptq'. Known: "),
        (lambda: Rule(name="a", weight=TensorSpec()), "The weight must be symmetric and signed"),
        (lambda: Rule(name="a", activation=TensorSpec(granularity="channel")), "The activation must have granularity"),
        (lambda: Rule(), "A rule needs exactly one of type, pattern and name, or type and name, got none of them."),
        (
            lambda: Rule(pattern="a", name="b"),
            "A rule needs exactly one of type, pattern and name, or type and name, got ['pattern', 'name'].",
        ),
        (lambda: Rule(name="a", index=1), "A rule with an index needs type and name, got ['name']."),
        (lambda: Rule(name="a", type="b", index=-1), "Rule.index must lie in 0..1000000, got -1."),
        (lambda: Rule(pattern="["), "The rule's pattern '[' is no regular expression: "),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(make, message):
    assert refusal(make).startswith(message)


@pytest.mark.parametrize("key", ["observer", "training_observer"])
def test_an_observer_for_activations_is_refused_for_a_weight_whose_range_it_would_not_shrink(key):
    spec = dataclasses.replace(WEIGHT, **{key: Method("percentile", (("percentile", 1.0),))})
    message = refusal(lambda: QConfig(weight=spec))
    assert message.startswith(f"weight.{key} is 'percentile', which is for activations; for weights: minmax,")
    assert message == refusal(lambda: Rule(type="conv", weight=spec))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("percentile", "a", "observer.percentile must be float, got 'a'."),
        ("percentile", True, "observer.percentile must be float, got True."),
        ("percentile", 50.5, "observer.percentile must lie in 0.0..49.0, got 50.5."),
        ("percentile", -1, "observer.percentile must lie in 0.0..49.0, got -1."),
        ("percentle", 1.0, "Unknown key 'percentle' in observer (percentile). Did you mean 'percentile'?"),
    ],
)
def test_the_options_of_an_algorithm_are_checked(option, value, message):
    assert refusal(lambda: TensorSpec(observer={"name": "percentile", option: value})).startswith(message)


@pytest.mark.parametrize(
    ("bits", "reduced", "signed", "codes"),
    [
        (8, False, True, (-128, 127)),
        (8, False, False, (0, 255)),
        (8, True, False, (0, 127)),
        (8, True, True, (-64, 63)),
        (4, False, True, (-8, 7)),
    ],
)
def test_the_codes_of_a_spec(bits, reduced, signed, codes):
    assert TensorSpec(bits=bits, reduce_range=reduced).codes(signed) == codes


def decided(rules, name, types=()):
    rule = QConfig(rules=tuple(rules)).rule_for(Place(name, types))
    return None if rule is None else rules.index(rule)


def test_a_name_wins_over_a_pattern_and_a_pattern_over_a_type_whatever_their_order():
    rules = [Rule(type="conv"), Rule(pattern="layer1.*"), Rule(name="layer1.conv")]
    for order in (rules, rules[::-1]):
        assert order[decided(order, "layer1.conv", ("conv",))] is rules[2]
        assert order[decided(order, "layer1.other", ("conv",))] is rules[1]
        assert order[decided(order, "layer2.conv", ("conv",))] is rules[0]
        assert decided(order, "layer2.fc", ("linear",)) is None


def test_of_several_names_the_longest_wins_and_of_other_equals_the_first():
    names = [Rule(name="a"), Rule(name="a.b", quantize=False)]
    for order in (names, names[::-1]):
        assert order[decided(order, "a.b.c")] is names[1]
        assert order[decided(order, "a.c")] is names[0]
    assert decided([Rule(pattern="a.*"), Rule(pattern=".*b")], "ab") == 0
    assert decided([Rule(type="conv"), Rule(type="Conv2d")], "x", ("conv", "Conv2d")) == 0


@pytest.mark.parametrize(
    ("rule", "name", "matches"),
    [
        (Rule(name="layer1"), "layer1", True),
        (Rule(name="layer1"), "layer1.0.conv", True),
        (Rule(name="layer1"), "layer10", False),
        (Rule(pattern=r"layer\d"), "layer1", True),
        (Rule(pattern=r"layer\d"), "layer1.0", False),
        (Rule(pattern=r"layer\d"), "my.layer1", False),
        (Rule(type="Conv2d"), "any", True),
        (Rule(type="Conv"), "any", False),
        (Rule(type="*"), "any", True),
    ],
)
def test_what_a_rule_matches(rule, name, matches):
    assert rule.matches(Place(name, ("conv", "Conv2d"))) is matches


def test_specs_are_values():
    assert TensorSpec() == TensorSpec()
    assert hash(QConfig()) == hash(QConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        TensorSpec().bits = 4


PLACE = Place("a.b.add", ("add", "iadd"), scope="a.b", order=(2, 0), around=("Inner", "Outer", "Model"))


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (Rule(name="a", type="add"), True),
        (Rule(name="a", type="mul"), False),
        (Rule(name="", type="add"), True),
        (Rule(name="a.b.add", type="add"), True),
        (Rule(name="b", type="add"), False),
        (Rule(name="a", type="Inner"), True),
        (Rule(type="Outer"), True),
        (Rule(name=""), True),
        (Rule(name="a.b", type="add", index=2), True),
        (Rule(name="a.b", type="add", index=1), False),
        (Rule(name="a.b", type="iadd", index=0), True),
        (Rule(name="a", type="add", index=2), False),  # an index counts what one module calls itself
    ],
)
def test_what_a_rule_for_a_type_within_a_module_matches(rule, matches):
    assert rule.matches(PLACE) is matches


def test_an_index_wins_over_a_name_a_type_beside_a_name_over_none_and_the_innermost_class_over_the_outer():
    rules = [
        Rule(type="*"),
        Rule(type="Model"),
        Rule(type="Inner"),
        Rule(type="add"),
        Rule(pattern="a.*"),
        Rule(name="a"),
        Rule(name="a.b"),
        Rule(name="a.b", type="Outer"),
        Rule(name="a.b.add"),
        Rule(name="a.b", type="add", index=2),
    ]
    for count in range(1, len(rules) + 1):
        for order in (rules[:count], rules[count - 1 :: -1]):
            assert QConfig(rules=tuple(order)).rule_for(PLACE) is rules[count - 1]
