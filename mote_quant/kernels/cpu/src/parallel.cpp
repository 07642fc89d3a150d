#include "parallel.h"

#include <system_error>
#include <thread>
#include <vector>

namespace mote {
namespace {

std::atomic<ParallelRunner> chosen_runner{nullptr};

// Threads of our own, made and ended in every call: nothing spins, nothing is left to break in a forked child.
void run_on_new_threads(void (*body)(void*), void* data, int threads) {
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads - 1));
  try {
    while (static_cast<int>(others.size()) < threads - 1) others.emplace_back(body, data);
  } catch (const std::system_error&) {
    // The system gives no more threads: those there are take all items.
  }
  body(data);
  for (auto& other : others) other.join();
}

}  // namespace

void set_runner(ParallelRunner runner) { chosen_runner = runner; }

void run_parallel(void (*body)(void*), void* data, int threads) {
  if (const ParallelRunner runner = chosen_runner) {
    runner(body, data, static_cast<unsigned>(threads), 0);
  } else {
    run_on_new_threads(body, data, threads);
  }
}

}  // namespace mote
