// How often each operation ran here: the proof, for tests and reports, of what computed a result.
#pragma once

namespace mote {

enum Op { TERNARY_MATMUL = 0, TERNARY_EXPERTS = 1, INT_MATMUL = 2, QUANTIZE = 3, OPS = 4 };

void count_call(Op op);

}  // namespace mote
