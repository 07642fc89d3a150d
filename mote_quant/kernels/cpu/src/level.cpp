#include "level.h"

#include <atomic>
#include <cstdint>
#include <initializer_list>

#include "abi.h"
#include "parallel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#endif

namespace mote {
namespace {

#if defined(__x86_64__)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

bool has(unsigned bits, int bit) { return (bits >> bit) & 1u; }

// The register state that the system saves: without it an instruction faults though the processor has it.
uint64_t saved_state() {
  if (!has(cpuid(1, 0).ecx, 27)) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool saves(uint64_t mask) { return (saved_state() & mask) == mask; }
constexpr uint64_t YMM = 0x6, ZMM = 0xe6, TILES = 0x60000;

bool cpu_avx2() {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
  return saves(YMM) && has(seven.ebx, 5) && has(one.ecx, 12) && has(one.ecx, 29);
}

bool cpu_avxvnni() { return cpu_avx2() && has(cpuid(7, 1).eax, 4); }

bool cpu_avx512() {
  const Registers seven = cpuid(7, 0);
  return cpu_avx2() && saves(ZMM) && has(seven.ebx, 16) && has(seven.ebx, 17) && has(seven.ebx, 30) &&
         has(seven.ebx, 31) && has(seven.ecx, 11);
}

// Linux gives tile registers only to those who ask.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
  return false;
#endif
}

bool cpu_amx() {
  const Registers seven = cpuid(7, 0);
  return cpu_avx512() && has(seven.edx, 24) && has(seven.edx, 25) && saves(TILES) && tiles_permitted();
}

bool cpu_neon() { return false; }
bool cpu_avx512_bf16() { return cpu_avx512() && has(cpuid(7, 1).eax, 5); }
bool cpu_avx512_vbmi() { return cpu_avx512() && has(cpuid(7, 0).ecx, 1); }

#else

bool cpu_avx2() { return false; }
bool cpu_avxvnni() { return false; }
bool cpu_avx512() { return false; }
bool cpu_amx() { return false; }
bool cpu_avx512_bf16() { return false; }
bool cpu_avx512_vbmi() { return false; }
bool cpu_neon() {
#if defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long DOT_PRODUCT = 1ul << 20;
  return (getauxval(AT_HWCAP) & DOT_PRODUCT) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

#endif

constexpr bool built(Level level) {
  switch (level) {
#ifdef MOTE_WITH_AVX2
    case AVX2:
#endif
#ifdef MOTE_WITH_AVXVNNI
    case AVXVNNI:
#endif
#ifdef MOTE_WITH_AVX512
    case AVX512:
#endif
#ifdef MOTE_WITH_AMX
    case AMX:
#endif
#ifdef MOTE_WITH_NEON
    case NEON:
#endif
    case PORTABLE:
      return true;
    default:
      return false;
  }
}

bool detect(Level level) {
  using Probe = bool (*)();
  static constexpr Probe probes[] = {nullptr, cpu_avx2, cpu_avxvnni, cpu_avx512, cpu_amx, cpu_neon};
  return built(level) && (probes[level] == nullptr || probes[level]());
}

Level best() {
  for (Level level : {NEON, AMX, AVX512, AVXVNNI, AVX2}) {
    if (detect(level)) return level;
  }
  return PORTABLE;
}

std::atomic<int> level_in_force{-1};

}  // namespace

bool supports(Level level) { return detect(level); }

Level current_level() {
  if (level_in_force.load(std::memory_order_relaxed) < 0) level_in_force = best();
  return static_cast<Level>(level_in_force.load(std::memory_order_relaxed));
}

bool set_level(Level level) {
  if (!supports(level)) return false;
  level_in_force = level;
  return true;
}

bool has_avx512_bf16() {
  static const bool found = cpu_avx512_bf16();
  return found;
}

bool has_avx512_vbmi() {
  static const bool found = cpu_avx512_vbmi();
  return found;
}

}  // namespace mote

MOTE_API int32_t mote_abi() { return MOTE_ABI; }

MOTE_API int32_t mote_level() { return mote::current_level(); }

MOTE_API int32_t mote_supports(int32_t level) {
  return level >= mote::PORTABLE && level <= mote::NEON && mote::supports(static_cast<mote::Level>(level));
}

MOTE_API int32_t mote_set_level(int32_t level) {
  if (!mote_supports(level)) return MOTE_BAD_ARGUMENT;
  return mote::set_level(static_cast<mote::Level>(level)) ? MOTE_OK : MOTE_BAD_ARGUMENT;
}

// `runner` is the address of a GOMP_parallel, or null.
MOTE_API void mote_set_runner(void* runner) { mote::set_runner(reinterpret_cast<mote::ParallelRunner>(runner)); }
