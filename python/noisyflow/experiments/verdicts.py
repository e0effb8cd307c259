"""How many of a paper's statements hold, counted apart from checks of the measurement.

A check is what must be so whatever the paper says, as that information does not grow
along a network: it speaks for the numbers, not for the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from noisyflow.experiments import Claim

CHECKS = "Checks of the measurement"  # the title of their table in every report


def counts(claims: Sequence[Claim], checks: Sequence[Claim]) -> str:
    """Both kinds counted, in words.

    Parameters
    ----------
    claims : sequence of Claim
        What a paper states.
    checks : sequence of Claim
        What must be so in any case.

    Returns
    -------
    str
    """
    found = [claim.holds for claim in claims]
    passed = sum(check.holds is True for check in checks)
    return (
        f"{found.count(True)} of {len(found)} statements of the paper hold, "
        f"{found.count(None)} undecided; {passed} of {len(checks)} checks of the "
        "measurement pass"
    )
