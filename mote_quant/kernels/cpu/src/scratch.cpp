#include "scratch.h"

#include <cstdlib>
#include <memory>

namespace mote {
namespace {

constexpr size_t KEPT_BYTES = size_t{1} << 21;

struct Free {
  void operator()(uint8_t* memory) const { std::free(memory); }
};

thread_local std::unique_ptr<uint8_t, Free> kept;

uint8_t* allocate(size_t bytes) { return static_cast<uint8_t*>(std::aligned_alloc(64, (bytes / 64 + 1) * 64)); }

uint8_t* kept_area() {
  if (kept == nullptr) kept.reset(allocate(KEPT_BYTES));
  return kept.get();
}

}  // namespace

Scratch::Scratch(size_t bytes)
    : area_(bytes <= KEPT_BYTES ? kept_area() : allocate(bytes)), kept_(bytes <= KEPT_BYTES) {}

Scratch::~Scratch() {
  if (!kept_) std::free(area_);
}

}  // namespace mote
