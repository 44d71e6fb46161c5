"""Where the weights start."""

from cnx.init.gaussian_control import GaussianControl
from cnx.init.gaussian_zero_conv import GaussianZeroConv
from cnx.init.pretrained import Pretrained
from cnx.init.scratch import Scratch
from cnx.init.sd_copy import SDCopy

__all__ = ["GaussianControl", "GaussianZeroConv", "Pretrained", "SDCopy", "Scratch"]
