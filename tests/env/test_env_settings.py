from __future__ import annotations

import pytest

from env.settings import EnvSettings
from schemas.errors import SettingsError


def test_defaults_are_long_flat_short_at_stock_costs():
    settings = EnvSettings()
    assert settings.targets == (-1.0, 0.0, 1.0)
    assert (settings.window, settings.episode_length, settings.starts) == (32, 256, "random")


def test_every_setting_has_a_description():
    assert all(field.description for field in EnvSettings.model_fields.values())


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        EnvSettings().fee = 0.1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"slipage": 0.1}, "unknown setting 'slipage'; did you mean 'slippage'?"),
        ({"xyz": 1}, "unknown setting 'xyz'; known settings: portfolio, episode_length, "),
        ({"window": 0}, "setting 'window': Input should be greater than or equal to 1, got 0"),
        ({"fee": 1.5}, "setting 'fee': Input should be less than 1, got 1.5"),
        ({"targets": (1.0,)}, "setting 'targets': .*at least 2"),
        ({"targets": (1.0, 1.0)}, "setting 'targets': .*differ from each other"),
        ({"targets": (1.0, float("inf"))}, "setting 'targets': .*finite"),
        ({"starts": "middle"}, "setting 'starts': .*'random', 'sequential' or 'whole', got 'middle'"),
        ({"initial_cash": float("nan")}, "setting 'initial_cash'"),
        ({"targets": (0.0, 2.0)}, r"settings: targets \(0.0, 2.0\) go beyond leverage 1.0; raise leverage"),
        ({"maintenance_margin": 0.5, "leverage": 2.0}, "leaves no room at leverage 2.0: their product must be below 1"),
        ({"protect_by_action": True, "stop_loss": 0.1}, "protect_by_action needs actions 'weights' or 'quantities'"),
        ({"protect_by_action": True, "actions": "weights"}, "needs stop_loss, take_profit or trailing_stop as the"),
        ({"position_features": ("position", "position")}, "'position_features': .*names must differ from each other"),
        ({"position_features": ("luck",)}, "setting 'position_features'"),
        ({"features": ()}, "setting 'features': .*at least 1"),
    ],
)
def test_bad_setting_is_one_clear_line(values, words):
    with pytest.raises(SettingsError, match=words) as caught:
        EnvSettings.from_mapping(values)
    assert "\n" not in str(caught.value)


def test_protections_are_told_in_the_order_of_the_action_dimensions():
    settings = EnvSettings(trailing_stop=0.1, stop_loss=0.2)
    assert settings.protections == ("stop_loss", "trailing_stop")
    assert EnvSettings().protections == ()


def test_actions_are_discrete_or_not():
    kinds = {kind: EnvSettings(actions=kind).discrete for kind in ("targets", "hold_buy_sell", "weights", "quantities")}
    assert kinds == {"targets": True, "hold_buy_sell": True, "weights": False, "quantities": False}
