#include "quantize_loops.h"

namespace mote {

const QuantizeKernels& quantize_avx2() { return KERNELS; }

}  // namespace mote
