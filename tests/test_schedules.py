"""Schedules: formulas, known values, what optimizers make of them, and every refusal."""

from __future__ import annotations

import math

import pytest
from oracle import expected_multiplier

from bertadam_cuda import schedules
from bertadam_cuda.schedules import SCHEDULES, last_position, multiplier, validate

NEEDED = {"decay_rate": 0.9, "decay_steps": 250}
ARGS: dict[str, dict[str, float]] = {
    "warmup_linear_decay_exp": NEEDED,
    "warmup_exp_decay_exp": NEEDED,
}
SIX = (
    "warmup_cosine",
    "warmup_constant",
    "warmup_linear",
    "warmup_linear_decay_exp",
    "warmup_exp_decay_exp",
    "warmup_exp_decay_poly",
)
OTHERS = (
    "warmup_poly",
    "warmup_linear_hf",
    "warmup_cosine_hf",
    "warmup_cosine_hard_restarts",
    "warmup_cosine_warmup_restarts",
    "none",
)
EXACT = {"rel": 1e-12, "abs": 1e-12}


def test_the_table_maps_every_name_to_the_function_of_that_name() -> None:
    assert set(SCHEDULES) == {*SIX, *OTHERS}
    for name, function in SCHEDULES.items():
        assert function.__name__ == name
        assert getattr(schedules, name) is function


@pytest.mark.parametrize(
    ("name", "call", "expected"),
    [
        ("warmup_cosine", (0.01, 0.02), 0.5),
        ("warmup_cosine", (0.5, 0.02), 0.5),
        ("warmup_cosine", (0.25, 0.1), 0.5 + math.sqrt(0.5) / 2),
        ("warmup_cosine", (1.5, 0.1), 0.5),
        ("warmup_cosine", (0.001,), 0.5),
        ("warmup_constant", (0.03, 0.12), 0.25),
        ("warmup_constant", (7.0, 0.12), 1.0),
        ("warmup_linear", (0.03, 0.12), 0.25),
        ("warmup_linear", (0.75, 0.12), 0.25),
        ("warmup_linear", (1.1, 0.12), -0.1),
        ("warmup_linear", (0.75, 0.0), 1.0),
        ("warmup_linear", (0.75, -1), 0.25),
        ("warmup_linear_decay_exp", (10, 0.5, 20, 100, 0), 1.0),
        ("warmup_linear_decay_exp", (10, 0.5, 20, 100, 0.2), 0.5),
        ("warmup_linear_decay_exp", (60, 0.5, 20, 100, 0.2), 0.25),
        ("warmup_linear_decay_exp", (0, 0.99, 520, 125000, -1), 0.99 ** (125000 / 520)),
        ("warmup_exp_decay_exp", (10, 0.5, 20, 100, 0.2), 0.25),
        ("warmup_exp_decay_exp", (10, 0.5, 20, 100, 0.2, 3.0), 0.125),
        ("warmup_exp_decay_exp", (120, 0.5, 20, 100, 0.2), 1 / 32),
        ("warmup_exp_decay_poly", (5, 100, 0.2), 0.125),
        ("warmup_exp_decay_poly", (5, 100, 0.2, 0.5), 0.5),
        ("warmup_exp_decay_poly", (70, 100, 0.2), 0.09),
        ("warmup_exp_decay_poly", (70, 100, 0.2, 1.5, 1.0), 0.3),
        ("warmup_exp_decay_poly", (110, 100, 0.2), 0.01),
        ("warmup_poly", (0.75, 0.1), 0.5),
        ("warmup_poly", (0.75, 0.1, 2.0), 0.0625),
        ("warmup_linear_hf", (0.55, 0.1), 0.5),
        ("warmup_linear_hf", (1.7, 0.1), 0.0),
        ("warmup_cosine_hf", (0.55, 0.1), 0.5),
        ("warmup_cosine_hf", (0.55, 0.1, 1.0), 0.0),
        ("warmup_cosine_hard_restarts", (0.55, 0.1, 2), 1.0),
        ("warmup_cosine_hard_restarts", (1.0, 0.1, 2), 0.0),
        ("warmup_cosine_hard_restarts", (0.325, 0.1, 2), 0.5),
        ("warmup_cosine_warmup_restarts", (0.55, 0.1, 2), 0.5),
        ("warmup_cosine_warmup_restarts", (0.3, 0.1, 2), 0.5),
        ("warmup_cosine_warmup_restarts", (1.0, 0.1, 2), 0.0),
        ("none", (0.3, 0.9), 1.0),
    ],
)
def test_functions_give_known_values(name: str, call: tuple[float, ...], expected: float) -> None:
    assert SCHEDULES[name](*call) == pytest.approx(expected, **EXACT)


def test_functions_take_their_original_argument_names() -> None:
    decay = {"decay_rate": 0.5, "decay_steps": 20, "total_steps": 100, "warmup": 0.2}
    for name in ("warmup_cosine", "warmup_constant", "warmup_linear"):
        assert SCHEDULES[name](x=0.1, warmup=0.2) == 0.5
    assert schedules.warmup_linear_decay_exp(global_step=10, **decay) == 0.5
    assert schedules.warmup_exp_decay_exp(global_step=10, degree=1.0, **decay) == 0.5
    assert schedules.warmup_exp_decay_poly(
        global_step=10, total_steps=100, warmup=0.2, warm_degree=1.0, degree=3.0
    ) == pytest.approx(0.5)


def test_poly_is_complex_past_the_end_for_a_fractional_degree_as_the_original() -> None:
    assert isinstance(schedules.warmup_exp_decay_poly(11, 10, 0.1, degree=0.5), complex)


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("warmup_linear_decay_exp", NEEDED, {0: 0, 225: 0.5, 450: 1, 700: 0.9}),
        ("warmup_exp_decay_exp", NEEDED, {0: 0, 225: 0.25, 450: 1, 700: 0.9}),
        ("warmup_exp_decay_poly", {}, {0: 0, 225: 0.5**1.5, 450: 0.94**2, 3750: 0.25, 7500: 0}),
    ],
)
def test_known_values_of_the_64k_recipe(
    name: str, args: dict[str, float], expected: dict[int, float]
) -> None:
    value = multiplier(name, 0.06, 7500, args)
    for position, known in expected.items():
        assert value(position) == pytest.approx(known, **EXACT)
    if args:
        assert value(7500) == pytest.approx(0.9 ** (7050 / 250), **EXACT)
        assert value(7500) == pytest.approx(0.0512, abs=1e-4)


@pytest.mark.parametrize("warmup", [-1, 0, 0.002, 0.06, 0.3])
@pytest.mark.parametrize("t_total", [-1, 1, 7, 1000, 7500, 100.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_multiplier_equals_the_table_of_formulas(name: str, t_total: float, warmup: float) -> None:
    args = ARGS.get(name)
    value = multiplier(name, warmup, t_total, args)
    for position in {*range(12), 20, 59, 60, 61, 99, 100, 101, 450, 999, 1000, 7499, 7500, 10**9}:
        expected = expected_multiplier(name, position, warmup, t_total, args)
        assert value(position) == pytest.approx(expected, **EXACT), position


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("warmup_exp_decay_exp", {"decay_rate": 0.5, "decay_steps": 3.5, "degree": 1.5}),
        ("warmup_exp_decay_poly", {"warm_degree": 0.5, "degree": 0.7}),
        ("warmup_poly", {"degree": 3}),
        ("warmup_cosine_hf", {"cycles": 1.75}),
        ("warmup_cosine_hard_restarts", {"cycles": 3}),
        ("warmup_cosine_hard_restarts", {"cycles": 1.5}),
        ("warmup_cosine_warmup_restarts", {"cycles": 3}),
        ("warmup_cosine_warmup_restarts", {"cycles": 2.25}),
    ],
)
def test_schedule_args_reach_the_formula(name: str, args: dict[str, float]) -> None:
    value = multiplier(name, 0.25, 64, args)
    for position in range(80):
        expected = expected_multiplier(name, position, 0.25, 64, args)
        assert value(position) == pytest.approx(expected, **EXACT), position


@pytest.mark.parametrize("warmup", [-1, 0, 0.1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_multiplier_is_a_real_number_in_0_1_and_constant_past_t_total(
    name: str, warmup: float
) -> None:
    value = multiplier(name, warmup, 40, ARGS.get(name))
    for position in range(-3, 41):
        assert type(value(position)) is float or value(position) in (0, 1)
        assert 0.0 <= value(position) <= 1.0
    assert math.copysign(1.0, value(40)) == 1.0, "a multiplier of -0.0 would change bits"
    assert {value(position) for position in (40, 41, 80, 10**6)} == {value(40)}
    assert value(-3) == value(0)


def test_fractional_degree_stays_real_past_t_total() -> None:
    value = multiplier("warmup_exp_decay_poly", 0.1, 10, {"degree": 0.5})
    assert value(1000) == 0.0


@pytest.mark.parametrize("name", ["warmup_linear_decay_exp", "warmup_exp_decay_exp"])
def test_exponential_decays_start_at_one_without_a_ramp(name: str) -> None:
    value = multiplier(name, -1, 125000, {"decay_rate": 0.99, "decay_steps": 520})
    assert [value(0), value(520)] == pytest.approx([1.0, 0.99], **EXACT)


def test_linear_decays_with_warmup_minus_one_and_not_with_zero() -> None:
    assert multiplier("warmup_linear", -1, 100)(75) == 0.25
    assert multiplier("warmup_linear", 0, 100)(75) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_names_are_constant_without_t_total(name: str) -> None:
    value = multiplier(name, 0.5, -1, ARGS.get(name))
    assert {value(position) for position in (0, 1, 10**9)} == {1.0}


def test_last_position_is_where_the_multiplier_becomes_constant() -> None:
    assert last_position("warmup_linear", 100) == 100
    assert last_position("warmup_linear", 100.5) == 101
    assert last_position("warmup_linear", -1) == 0
    assert last_position(lambda position: 1.0, 100) == 100
    assert last_position(lambda position: 1.0, -1) is None


def test_a_callable_gets_the_position() -> None:
    assert [multiplier(lambda position: position / 4, -1, -1)(i) for i in (0, 1, 9)] == [
        0,
        0.25,
        2.25,
    ]


def test_a_callable_is_clamped_to_t_total_and_to_zero() -> None:
    value = multiplier(lambda position: 1 - position / 10, -1, 8)
    assert [value(i) for i in (0, 8, 9, 100)] == pytest.approx([1.0, 0.2, 0.2, 0.2])
    assert multiplier(lambda position: 1 - position / 10, -1, -1)(100) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_callable_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"callable returned .* at position 3, expected a finite"):
        multiplier(lambda position: value, -1, -1)(3)


@pytest.mark.parametrize("value", [None, "1", 1j])
def test_a_callable_that_returns_no_real_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"callable returned .* at position 3, expected a finite"):
        multiplier(lambda position: value, -1, -1)(3)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("warmup_sine", -1, -1, None), "schedule 'warmup_sine' is unknown, expected one of "),
        (("", -1, -1, None), "or a callable"),
        (("none", 1, 10, None), r"warmup is 1, expected \[0, 1\), or -1"),
        (("none", -0.5, 10, None), "warmup is -0.5"),
        (("none", math.nan, 10, None), "warmup is nan"),
        (("none", -1, 0, None), "t_total is 0, expected a number of updates > 0, or -1"),
        (("none", -1, -2, None), "t_total is -2"),
        (("none", -1, math.inf, None), "t_total is inf"),
        (("none", -1, math.nan, None), "t_total is nan"),
        (
            ("warmup_linear", -1, 10, {"degree": 2}),
            "schedule_args of schedule 'warmup_linear': unknown 'degree'; it takes none",
        ),
        (
            ("warmup_exp_decay_exp", -1, 10, {"decay_rate": 0.9, "rate": 1}),
            "missing 'decay_steps'; unknown 'rate'; it takes 'decay_rate' .required., "
            "'decay_steps' .required., 'degree' .optional.",
        ),
        (("warmup_linear_decay_exp", -1, -1, None), "missing 'decay_rate', 'decay_steps'"),
        (
            ("warmup_linear_decay_exp", -1, 10, {"decay_rate": 0, "decay_steps": 1}),
            r"schedule_args\['decay_rate'\] is 0.0, expected a number in \(0, 1\]",
        ),
        (("warmup_linear_decay_exp", -1, 10, {"decay_rate": 1.1, "decay_steps": 1}), "is 1.1"),
        (("warmup_linear_decay_exp", -1, 10, {"decay_rate": 1, "decay_steps": 0}), "number > 0"),
        (("warmup_poly", -1, 10, {"degree": math.inf}), r"\['degree'\] is inf"),
        (("warmup_cosine_hard_restarts", -1, 10, {"cycles": 0.5}), "finite number >= 1"),
        (
            ("warmup_cosine_warmup_restarts", 0.5, 10, {"cycles": 2}),
            r"warmup \* cycles is 0.5 \* 2",
        ),
        ((lambda position: 1.0, -1, -1, {"degree": 2}), "'degree', but a callable .* takes none"),
    ],
)
def test_bad_values_are_refused(settings: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=r"^BertAdam: param_groups\[1\]: .*" + message):
        validate(*settings, where="BertAdam: param_groups[1]")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((None, -1, -1, None), "schedule has type NoneType, expected a name or a callable"),
        ((3, -1, -1, None), "schedule has type int"),
        (("none", "0.1", -1, None), "warmup has type str"),
        (("none", True, -1, None), "warmup has type bool"),
        (("none", -1, None, None), "t_total has type NoneType"),
        (("none", -1, -1, [("degree", 2)]), "schedule_args has type list, expected a dict"),
        (("warmup_poly", -1, -1, {"degree": "2"}), r"schedule_args\['degree'\] has type str"),
    ],
)
def test_bad_types_are_refused(settings: tuple[object, ...], message: str) -> None:
    with pytest.raises(TypeError, match=f"^here: .*{message}"):
        validate(*settings, where="here")


def test_the_message_about_an_unknown_schedule_lists_every_name() -> None:
    with pytest.raises(ValueError, match="is unknown") as caught:
        validate("linear", -1, -1, None, where="here")
    assert all(repr(name) in str(caught.value) for name in SCHEDULES)


def test_multiplier_validates_too() -> None:
    with pytest.raises(ValueError, match=r"schedules\.multiplier: t_total is 0"):
        multiplier("none", -1, 0)


def test_validate_accepts_every_name_without_optional_arguments() -> None:
    for name in SCHEDULES:
        validate(name, 0.1, 100, ARGS.get(name), where="here")
        validate(name, -1, -1, ARGS.get(name), where="here")
    validate(lambda position: 1.0, 0, 1, {}, where="here")
