"""Whether mote-quant can work here, and how well: versions, extras, hardware, and what is known to go wrong."""

from mote_quant.doctor.examine import diagnose
from mote_quant.doctor.findings import Finding

__all__ = ["Finding", "diagnose"]
