"""What a preset says about each tensor: frozen, strictly read, comparable, and written back without loss."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from edgeq import strict
from edgeq.arithmetic import PowerOfTwoRule, Rounding, Sign, code_range
from edgeq.errors import SpecError, suggestion
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from edgeq.observers.registry import OBSERVERS
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.recovery.registry import LAYER_STEPS
from edgeq.registry import Registry


class Granularity(StrEnum):
    """How many scales a tensor has."""

    TENSOR = "tensor"
    CHANNEL = "channel"  # one a channel of the output, along the weight's output axis


class ScaleKind(StrEnum):
    """Which numbers may be scales."""

    FREE = "free"
    POWER_OF_TWO = "power_of_two"


@dataclass(frozen=True)
class Method:
    """A registered algorithm and its options; in a file ``"name"`` or ``{name = "name", option = value}``."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def from_data(cls, value: Any, where: str) -> Method:
        """Reads either form. The names are checked where the registry is known, by `check`."""
        if isinstance(value, Method):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            options = {key: item for key, item in value.items() if key != "name"}
            return cls(value["name"], tuple(sorted(options.items())))
        raise SpecError(f"{where} must be a name or a table with a name, got {value!r}.")

    def to_data(self) -> Any:
        """The shortest form that `from_data` reads back."""
        return {"name": self.name, **dict(self.options)} if self.options else self.name

    def check(self, registry: Registry[Any], where: str) -> None:
        """Raises SpecError unless the name is registered and takes these options."""
        try:
            known = registry.options(self.name)
        except SpecError as error:
            raise SpecError(f"{where}: {error}") from None
        strict.check_keys(dict(self.options), known, f"{where} ({self.name})")
        for key, value in self.options:
            default = known[key]
            accepted = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, accepted) or isinstance(value, bool) is not isinstance(default, bool):
                raise SpecError(f"{where}.{key} must be {type(default).__name__}, got {value!r}.")
            low, high = registry.bounds(self.name).get(key, (value, value))
            if not low <= value <= high:
                raise SpecError(f"{where}.{key} must lie in {low}..{high}, got {value!r}.")
            choices = getattr(registry[self.name], "choices", {}).get(key, (value,))
            if value not in choices:
                raise SpecError(f"{where}.{key} is {value!r}. {suggestion(value, choices)}")


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor, or one kind of tensors, is quantized.

    `range_max` limits the range that an observer found to -range_max..range_max (0..range_max when nothing is
    negative); `fixed_range` replaces it, so that the scale is a constant. `reduce_range` leaves the top bit of
    the type unused, for kernels whose 16-bit intermediate sums would saturate. `observer` finds the range
    during calibration, `training_observer` during training, where it must follow a moving target. `quantizer` is how
    the numbers are found from there on in training: "fixed" takes the range as it is, others learn; calibration takes
    all uniform ones for fixed.
    """

    bits: int = strict.number(8, 2, 16)
    sign: Sign = Sign.AUTO
    symmetric: bool = False
    granularity: Granularity = Granularity.TENSOR
    scale: ScaleKind = ScaleKind.FREE
    power_of_two_rule: PowerOfTwoRule = PowerOfTwoRule.CEIL
    range_max: float | None = strict.number(None, 1e-9, 1e9)
    fixed_range: float | None = strict.number(None, 1e-9, 1e9)
    reduce_range: bool = False
    rounding: Rounding = Rounding.HALF_EVEN
    observer: Method = Method("minmax")
    training_observer: Method = Method("moving_average")
    quantizer: Method = Method("fixed")

    def __post_init__(self) -> None:
        strict.validate(self)
        self.observer.check(OBSERVERS, "observer")
        self.training_observer.check(OBSERVERS, "training_observer")
        self.quantizer.check(QUANTIZERS, "quantizer")
        for method in (self.observer, self.training_observer):
            OBSERVERS[method.name].check(self)
        QUANTIZERS[self.quantizer.name].check(self)
        if self.reduce_range and self.bits == 2:
            raise SpecError("bits is 2, of which reduce_range leaves one: too few to quantize anything.")

    def codes(self, signed: bool) -> tuple[int, int]:
        """Smallest and greatest code that a tensor of this spec uses."""
        return code_range(self.bits - self.reduce_range, signed)

    @property
    def rule(self) -> PowerOfTwoRule | None:
        """The power-of-two rule where one applies, else None."""
        return self.power_of_two_rule if self.scale is ScaleKind.POWER_OF_TWO else None


WEIGHT = TensorSpec(
    sign=Sign.SIGNED, symmetric=True, granularity=Granularity.CHANNEL, training_observer=Method("minmax")
)


@dataclass(frozen=True)
class BiasSpec:
    """The integer type of a bias. Its scale is the accumulator's: input scale times weight scale."""

    bits: int = strict.number(32, 8, 32)

    def __post_init__(self) -> None:
        strict.validate(self)


def check_specs(weight: TensorSpec | None, activation: TensorSpec | None) -> None:
    """Raises SpecError for specs that no runtime takes for what they are for, or whose observer is for the other."""
    if weight is not None:
        if not weight.symmetric or weight.sign is not Sign.SIGNED:
            raise SpecError("The weight must be symmetric and signed: runtimes take no other.")
        for key, method in (("observer", weight.observer), ("training_observer", weight.training_observer)):
            if not OBSERVERS[method.name].for_weights:
                choices = ", ".join(name for name in OBSERVERS if OBSERVERS[name].for_weights)
                raise SpecError(f"weight.{key} is {method.name!r}, which is for activations; for weights: {choices}.")
        _check_quantizer("weight", weight, "activation", [name for name in QUANTIZERS if QUANTIZERS[name].for_weights])
    if activation is not None:
        if activation.granularity is not Granularity.TENSOR:
            raise SpecError("The activation must have granularity 'tensor', not 'channel': runtimes take no other.")
        others = [name for name in QUANTIZERS if QUANTIZERS[name].for_activations]
        _check_quantizer("activation", activation, "weight", others)


def _check_quantizer(kind: str, spec: TensorSpec, other: str, choices: list[str]) -> None:
    name = spec.quantizer.name
    if name not in choices:
        raise SpecError(f"{kind}.quantizer is {name!r}, which is for {other}s; for {kind}s: {', '.join(choices)}.")


@dataclass(frozen=True)
class Place:
    """Where in a network an operation is called, which is what rules look at: its `name`, the `types` that it is
    known under, the path of the module whose forward makes the call (`scope`), how many calls of each of the types
    that forward made before (`order`), and the classes of the modules around it, from the inside out (`around`).
    """

    name: str
    types: tuple[str, ...] = ()
    scope: str = ""
    order: tuple[int, ...] = ()
    around: tuple[str, ...] = ()

    def below(self, origin: str) -> Place:
        """The same place with names that begin in a network of which that of this place is the submodule `origin`."""
        if not origin:
            return self
        name, scope = (f"{origin}.{path}" if path else origin for path in (self.name, self.scope))
        return dataclasses.replace(self, name=name, scope=scope)


@dataclass(frozen=True)
class Rule:
    """Another spec for some layers: by `name` (the layer, and all below it; "" is the whole network), by `pattern`
    (a regular expression that the whole name must match), or by `type` (class name of the module or of one that it
    is a part of, name of the function or method, the operator's name in edgeq's table, or ``*`` for every type).

    `name` and `type` together are for the layers of that type at or below that name; with an `index` as well, for
    the one of them that the forward of that very module calls after so many others of the type.

    Where several rules match, one with an index wins over a name, a name over a pattern and a pattern over a type;
    of several names the longest wins, of equal ones that with a type, of several types that of the layer itself or
    else of the innermost module around it, among other equals the first.
    ``quantize = false`` leaves the layer in float; ``weight_only = true``, for embeddings and recurrent layers, leaves
    all but its weights in float.
    """

    type: str | None = None
    pattern: str | None = None
    name: str | None = None
    index: int | None = strict.number(None, 0, 10**6)
    quantize: bool = True
    weight_only: bool = False
    weight: TensorSpec | None = None
    activation: TensorSpec | None = None

    def __post_init__(self) -> None:
        strict.validate(self)
        keys = [key for key in ("type", "pattern", "name") if getattr(self, key) is not None]
        if len(keys) != 1 and keys != ["type", "name"]:
            given = keys or "none of them"
            raise SpecError(f"A rule needs exactly one of type, pattern and name, or type and name, got {given}.")
        if self.index is not None and len(keys) == 1:
            raise SpecError(f"A rule with an index needs type and name, got {keys}.")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise SpecError(f"The rule's pattern {self.pattern!r} is no regular expression: {error}.") from None
        if self.weight_only and not self.quantize:
            raise SpecError("A rule that leaves its layers in float leaves no weights as integers either.")
        check_specs(self.weight, self.activation)

    @property
    def subject(self) -> str:
        """What the rule is for, in a few words."""
        if self.name is None:
            return repr(self.pattern or self.type)
        if self.type is None:
            return repr(self.name)
        return f"{self.type!r} in {self.name!r}" + ("" if self.index is None else f", number {self.index}")

    def level(self, place: Place) -> tuple[int, ...]:
        """Precedence at a place that matches: first 4 for an index, 3 for a name, 2 for a pattern, 1 for a type;
        then how long the name is, whether there is a type beside it, and how near the module of that type is.
        """
        if self.name is not None:
            return 3 if self.index is None else 4, len(self.name), self.type is not None
        return (2,) if self.pattern is not None else (1, -self._distance(place))

    def matches(self, place: Place) -> bool:
        """Whether what is called at `place` falls under this rule."""
        if self.index is not None:
            order = dict(zip(place.types, place.order, strict=False))
            return place.scope == self.name and order.get(self.type or "") == self.index
        if self.name and place.name != self.name and not place.name.startswith(f"{self.name}."):
            return False
        if self.pattern is not None:
            return re.fullmatch(self.pattern, place.name) is not None
        return self.type is None or self.type == "*" or self.type in place.types or self.type in place.around

    def reaches(self, path: str) -> bool:
        """Whether the rule may be for anything in the submodule at `path`, as far as its name tells."""
        if self.name is None or self.name == path or self.name.startswith(f"{path}."):
            return True
        return self.index is None and (not self.name or path.startswith(f"{self.name}."))

    def _distance(self, place: Place) -> int:
        types = [*place.types, *place.around]
        return max(types.index(self.type) - len(place.types) + 1, 0) if self.type in types else len(types)  # for "*"


@dataclass(frozen=True)
class QConfig:
    """A preset: one spec for weights, one for activations, one for biases, and rules for some layers.

    `edges` is the second half of ``"A+B"``: the preset of the network's input, of its first convolution's
    weight and of its last linear layer's weight. `recovery` names steps that a calibration ends with; `batch_norm` is
    one of `NORM_STRATEGIES`, how layers are trained with the batch norm that is folded into them. `weight_only` is for
    presets of single layers, in a mapping: see `Rule`. `origin` is the path of the network in a larger one, where the
    names in rules begin.
    """

    name: str = "custom"
    summary: str = ""
    weight: TensorSpec = WEIGHT
    activation: TensorSpec = TensorSpec()
    bias: BiasSpec = BiasSpec()
    recovery: tuple[str, ...] = ()
    batch_norm: str = "live"
    rules: tuple[Rule, ...] = ()
    weight_only: bool = False
    origin: str = ""
    edges: QConfig | None = field(default=None)

    def __post_init__(self) -> None:
        strict.validate(self)
        check_specs(self.weight, self.activation)
        NORM_STRATEGIES[self.batch_norm]
        for step in self.recovery:
            LAYER_STEPS[step]

    @property
    def learns(self) -> bool:
        """Whether any tensor has a quantizer other than the plain one, so that the preset is one for training."""
        parts: tuple[QConfig | Rule, ...] = (self, *self.rules)
        specs = [spec for part in parts for spec in (part.weight, part.activation) if spec is not None]
        own = any(spec.quantizer.name != "fixed" for spec in specs)
        return own or (self.edges is not None and self.edges.learns)

    def rule_for(self, place: Place) -> Rule | None:
        """The rule that decides about what is called at `place`, or None."""
        matching = [rule for rule in self.rules if self.matches(rule, place)]
        return max(matching, key=lambda rule: rule.level(place), default=None)  # the first among equals

    def matches(self, rule: Rule, place: Place) -> bool:
        """Whether what is called at `place` falls under one of this preset's rules."""
        return rule.matches(place.below(self.origin))

    def within(self, path: str) -> QConfig:
        """What this preset says of the submodule at `path`, for a network that is only that submodule. Rules by name
        for what lies outside are left out.
        """
        rules = tuple(rule for rule in self.rules if rule.reaches(path))
        return dataclasses.replace(self, rules=rules, origin=path)

    def without(self, paths: Collection[str]) -> QConfig:
        """This preset without the rules by name for what lies inside of the submodules at `paths`."""
        inside = tuple(f"{path}." for path in paths)
        rules = (rule for rule in self.rules if not (rule.name or "").startswith(inside))
        return dataclasses.replace(self, rules=tuple(rules))

    def require_rules_within(self, paths: Collection[str], others: Collection[str] = ()) -> None:
        """Raises SpecError for a rule by name that reaches none of the submodules at `paths`: it would be ignored.
        What it leaves in float may be among `others`, submodules that nothing quantizes.
        """
        for rule in self.rules:
            is_left = not rule.quantize and rule.index is None and rule.name in others
            if not is_left and not any(rule.reaches(path) for path in paths):
                raise SpecError(
                    f"The rule for {rule.subject} lies in none of the parts that are quantized: {', '.join(paths)}."
                )

    def with_edges(self, edges: QConfig) -> QConfig:
        """The mixed-precision preset ``self + edges``."""
        return dataclasses.replace(self, name=f"{self.name}+{edges.name}", edges=edges)
