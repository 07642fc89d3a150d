// Memory for the intermediate results of one call.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mote {

// Memory of the calling thread, aligned to a cache line, until the end of the scope. A little of it is kept for the
// next call, for fresh pages cost more than a small product; a thread has one such scope at a time.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Null where there is not enough memory.
  uint8_t* area() const { return area_; }

 private:
  uint8_t* area_;
  bool kept_;
};

// Cuts an area into aligned arrays; with a null area it only adds up their size.
class Cutter {
 public:
  explicit Cutter(uint8_t* area) : area_(area) {}

  template <typename T>
  T* take(int64_t count) {
    uint8_t* const at = area_ == nullptr ? nullptr : area_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }

  size_t used() const { return used_; }

 private:
  uint8_t* area_;
  size_t used_ = 0;
};

}  // namespace mote
