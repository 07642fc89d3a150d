// Work shared out over threads: how many is the caller's word (torch's), and so may be whose threads they are.
#pragma once
#include <atomic>
#include <cstdint>

namespace mote {

// The signature of libgomp's GOMP_parallel: run `body(data)` on `threads` threads and wait for them.
using ParallelRunner = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Whose threads to use; null is threads made for each call.
void set_runner(ParallelRunner runner);

// Runs `body(data)` on up to `threads` threads, the calling one among them, and returns when all are done.
void run_parallel(void (*body)(void*), void* data, int threads);

// Calls `work(item, worker)` for every item in [0, items): whoever is free takes the next. `worker` < max(1, threads)
// tells the threads of one call apart (for scratch memory). Items must not depend on each other.
template <typename Work>
void parallel_for(int64_t items, int threads, const Work& work) {
  if (threads <= 1 || items <= 1) {
    for (int64_t item = 0; item < items; ++item) work(item, 0);
    return;
  }
  struct Shared {
    const Work& work;
    int64_t items;
    std::atomic<int64_t> next{0};
    std::atomic<int> workers{0};
  } shared{work, items};
  run_parallel(
      [](void* data) {
        auto& all = *static_cast<Shared*>(data);
        const int worker = all.workers.fetch_add(1, std::memory_order_relaxed);
        for (int64_t item; (item = all.next.fetch_add(1, std::memory_order_relaxed)) < all.items;)
          all.work(item, worker);
      },
      &shared, static_cast<int>(threads < items ? threads : items));
}

}  // namespace mote
