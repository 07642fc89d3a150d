#include "quantize_loops.h"

namespace mote {

const QuantizeKernels& quantize_avx512() { return KERNELS; }

}  // namespace mote
