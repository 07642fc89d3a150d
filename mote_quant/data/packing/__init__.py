"""Several short samples in one row, none of which sees another."""

from mote_quant.data.packing.batches import Form, PackedRows
from mote_quant.data.packing.fitting import fit
from mote_quant.data.packing.isolation import form_for

__all__ = ["Form", "PackedRows", "fit", "form_for"]
