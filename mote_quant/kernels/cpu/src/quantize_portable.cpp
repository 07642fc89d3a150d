#include "quantize_loops.h"

namespace mote {

const QuantizeKernels& quantize_portable() { return KERNELS; }

}  // namespace mote
