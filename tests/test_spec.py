"""What a spec accepts, and which rule decides about a layer."""

import dataclasses

import pytest

from edgeq import QConfig, SpecError, TensorSpec, load_preset, save_preset
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
    assert message.startswith(f"weight.{key} is 'percentile', which is for activations; for weights: deviations,")
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


# ---- a preset for a part of a network


def test_a_place_in_a_part_has_its_names_from_the_whole():
    place = Place("stem.conv", ("Conv2d",), "stem", (0,), ("Block",))
    assert place.below("") is place
    assert place.below("body") == Place("body.stem.conv", ("Conv2d",), "body.stem", (0,), ("Block",))
    assert Place("", (), "").below("body") == Place("body", (), "body")


REACHING = [  # a rule, a part, and whether it may be for anything in it
    (Rule(type="Conv2d"), "body", True),
    (Rule(pattern="x"), "body", True),
    (Rule(name=""), "body", True),
    (Rule(name="body"), "body", True),
    (Rule(name="body.stem"), "body", True),
    (Rule(name="body"), "body.stem", True),
    (Rule(name="bod"), "body", False),
    (Rule(name="body2"), "body", False),
    (Rule(name="body"), "body2", False),
    (Rule(name="head.body"), "body", False),
    (Rule(name="body", type="Conv2d", index=0), "body", True),
    (Rule(name="body.stem", type="Conv2d", index=0), "body", True),
    (Rule(name="body", type="Conv2d", index=0), "body.stem", False),  # of the forward around the part
    (Rule(name="", type="Conv2d", index=0), "body", False),
]


@pytest.mark.parametrize(("rule", "path", "reaches"), REACHING)
def test_which_rules_reach_a_part(rule, path, reaches):
    assert rule.reaches(path) is reaches
    assert QConfig(rules=(rule,)).within(path).rules == ((rule,) if reaches else ())


def test_within_a_part_rules_decide_as_they_would_in_the_whole():
    rules = (
        Rule(name="", weight=dataclasses.replace(WEIGHT, bits=2)),
        Rule(name="body", weight=dataclasses.replace(WEIGHT, bits=3)),
        Rule(pattern=r"body\.stem\..*", weight=dataclasses.replace(WEIGHT, bits=4)),
        Rule(name="body.stem", weight=dataclasses.replace(WEIGHT, bits=5)),
        Rule(name="body.stem", type="Conv2d", index=1, weight=dataclasses.replace(WEIGHT, bits=6)),
        Rule(name="stem", weight=dataclasses.replace(WEIGHT, bits=7)),
    )
    places = [
        Place("stem.conv", ("Conv2d",), "stem", (0,)),
        Place("stem.conv", ("Conv2d",), "stem", (1,)),
        Place("down.conv", ("Conv2d",), "down", (1,)),
        Place("x", ("placeholder",)),
    ]
    for order in (rules, rules[::-1]):
        qconfig = QConfig(rules=order)
        within = qconfig.within("body")
        assert within.origin == "body"
        assert [within.rule_for(place).weight.bits for place in places] == [5, 6, 3, 3]
        assert [within.rule_for(place) for place in places] == [
            qconfig.rule_for(place.below("body")) for place in places
        ]
    only_pattern = QConfig(rules=(rules[2],)).within("body")
    assert [only_pattern.rule_for(place) is not None for place in places] == [True, True, False, False]


def test_without_some_parts_the_rules_inside_of_them_are_gone_and_no_others():
    names = ("", "one", "one.a", "one.a.b", "one2.a", "two.a")
    qconfig = QConfig(rules=(*(Rule(name=name) for name in names), Rule(type="Conv2d"), Rule(pattern="one.a")))
    left = qconfig.without(["one"])
    assert [rule.name for rule in left.rules] == ["", "one", "one2.a", "two.a", None, None]
    assert qconfig.without([]) == qconfig


def test_a_rule_by_name_must_reach_a_part_or_leave_in_float_what_is_none():
    paths = ["body", "head.out"]
    for rule in (Rule(type="Conv2d"), Rule(name=""), Rule(name="head"), Rule(name="head.out.0"), Rule(name="body")):
        QConfig(rules=(rule,)).require_rules_within(paths)
    left = QConfig(rules=(Rule(name="neck", quantize=False),))
    left.require_rules_within(paths, ["neck"])
    for qconfig, others in ((left, []), (left, ["nek"]), (QConfig(rules=(Rule(name="neck"),)), ["neck"])):
        with pytest.raises(SpecError) as error:
            qconfig.require_rules_within(paths, others)
        assert str(error.value) == ("The rule for 'neck' lies in none of the parts that are quantized: body, head.out.")


def test_where_names_begin_is_no_part_of_a_preset_that_is_written(tmp_path):
    qconfig = QConfig(name="own", rules=(Rule(name="body.stem", quantize=False),))
    save_preset(qconfig, tmp_path / "own.toml")
    assert "origin" not in (tmp_path / "own.toml").read_text()
    assert load_preset(tmp_path / "own.toml") == qconfig
