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
        ({"xyz": 1}, "unknown setting 'xyz'; known settings: window, "),
        ({"window": 0}, "setting 'window': Input should be greater than or equal to 1, got 0"),
        ({"fee": 1.5}, "setting 'fee': Input should be less than 1, got 1.5"),
        ({"targets": (1.0,)}, "setting 'targets': .*at least 2"),
        ({"targets": (1.0, 1.0)}, "setting 'targets': .*differ from each other"),
        ({"targets": (1.0, float("inf"))}, "setting 'targets': .*finite"),
        ({"starts": "middle"}, "setting 'starts': .*'random' or 'start', got 'middle'"),
        ({"initial_cash": float("nan")}, "setting 'initial_cash'"),
    ],
)
def test_bad_setting_is_one_clear_line(values, words):
    with pytest.raises(SettingsError, match=words) as caught:
        EnvSettings.from_mapping(values)
    assert "\n" not in str(caught.value)
