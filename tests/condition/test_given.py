import numpy as np
import pytest

from cnx.condition import Given
from cnx.errors import InputError


def test_a_given_map_stays_as_it_is_and_nothing_is_judged_by_it() -> None:
    given = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(Given()(given), given)
    with pytest.raises(InputError, match="condition=none"):
        Given().judge(given, given)
