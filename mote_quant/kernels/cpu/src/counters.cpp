#include "counters.h"

#include <atomic>
#include <cstdint>

#include "abi.h"

namespace mote {
namespace {
std::atomic<int64_t> calls[OPS];
}

void count_call(Op op) { calls[op].fetch_add(1, std::memory_order_relaxed); }

}  // namespace mote

// Calls of one op since the library was loaded; -1 for an op that does not exist.
MOTE_API int64_t mote_calls(int32_t op) { return op < 0 || op >= mote::OPS ? -1 : mote::calls[op].load(); }
