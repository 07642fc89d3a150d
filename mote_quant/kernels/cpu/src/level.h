// Instruction sets there are kernels for, and which of them this processor has.
#pragma once

namespace mote {

// Ordered: a later one is faster and, on x86, includes the earlier ones. NEON stands alone beside PORTABLE.
enum Level { PORTABLE = 0, AVX2 = 1, AVXVNNI = 2, AVX512 = 3, AMX = 4, NEON = 5 };

// Whether this library was built with a level and this processor (and system, for AMX) can run it.
bool supports(Level level);

// The one in force: the fastest there is, or what `set_level` chose.
Level current_level();

// False, and nothing changes, where the level is not supported.
bool set_level(Level level);

// AVX-512 F, BW, DQ, VL and VNNI make AVX512; these come on top of it in some processors.
bool has_avx512_bf16();
bool has_avx512_vbmi();

}  // namespace mote
