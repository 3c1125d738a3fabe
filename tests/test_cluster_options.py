"""Options of `Cluster` that are refused, with the rule and the cure."""

import pytest

from optuna_flyte_dsl import Cluster, InvalidOptionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials_port": 70000}, "a port from 0 to 65535"),
        ({"trials_host": 3}, "`trials_host` of `Cluster` must be a string"),
        ({"trials_key": "a"}, r"`trials_key` of `Cluster` needs `trials_certificate` too: .* Write `Cluster\("),
        ({"trials_certificate": "a"}, "`trials_certificate` of `Cluster` needs `trials_key` too"),
        ({"trials_certificate_name": "a"}, "`trials_certificate_name` of `Cluster` needs `trials_certificate`"),
        ({"zzz": 1}, r"`Cluster` has no option `zzz`\. It has `launches_per_second`"),
        ({"_cures": 1}, "`Cluster` has no option `_cures`"),
        ({"console_url": "flyte.example.com"}, "`console_url` of `Cluster` must be an address, such as 'https://"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        Cluster(**options)
