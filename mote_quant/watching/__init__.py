"""What can be seen of a training while it runs: routers, codes, gradients, speed. A callback of HF Trainer."""

from mote_quant.watching.figures import Figures
from mote_quant.watching.sinks import check_sinks

__all__ = ["Figures", "check_sinks"]
