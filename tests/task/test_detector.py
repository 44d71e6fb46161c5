"""How the detector of drawn scenes is trained."""

import torch
import torch.nn.functional as F

from cnx.task.detector import normal_loss


def test_a_normal_counts_for_more_on_a_thing_than_behind_it() -> None:
    true = torch.zeros(1, 3, 4, 4)
    true[:, 2] = 1
    things = torch.zeros(1, 4, 4, dtype=torch.bool)
    things[0, 0, 0] = True
    on_thing, behind = true.clone(), true.clone()
    on_thing[0, :, 0, 0] = behind[0, :, 3, 3] = torch.tensor([1.0, 0, 0])  # a right angle off
    assert normal_loss(true, true, things) == 0
    assert normal_loss(behind, true, things) == 4 / 16
    assert normal_loss(on_thing, true, things) == 4 / 16 + 1


def test_pictures_without_things_have_a_finite_loss() -> None:
    true = F.normalize(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    loss = normal_loss(-true, true, torch.zeros(2, 8, 8, dtype=torch.bool))
    assert torch.isclose(loss, torch.tensor(8.0))
