// What Python calls (ctypes): plain C, raw pointers and sizes. Every function returns 0, or an error of `mote_error`.
#pragma once
#include <cstdint>

#define MOTE_API extern "C" __attribute__((visibility("default")))

// Bumped whenever a signature or a packed layout changes: Python refuses a library of another number.
constexpr int32_t MOTE_ABI = 1;

enum MoteType : int32_t { MOTE_FLOAT32 = 0, MOTE_BFLOAT16 = 1, MOTE_FLOAT16 = 2 };
enum MoteError : int32_t { MOTE_OK = 0, MOTE_BAD_ARGUMENT = 1, MOTE_OUT_OF_MEMORY = 2 };
