// Activation functions of a feed-forward network on rows of float32, in loops that the compiler vectorises: compiled
// anew in each unit that includes this. Relative errors are about 1e-7; NaN stays NaN.
#pragma once
#include "float_rows.h"
#include "ternary.h"

namespace mote {
namespace {

// e^x = 2^n e^r with |r| <= ln(2) / 2; beyond +-87 the result is that of +-87, far below or above what matters here.
inline float exponential(float x) {
  constexpr float LIMIT = 87.0f, LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
  constexpr float ROUNDER = 12582912.0f;
  x = x > LIMIT ? LIMIT : x;
  x = x < -LIMIT ? -LIMIT : x;
  const float shifted = x * LOG2_E + ROUNDER;
  const float n = shifted - ROUNDER;
  const float r = (x - n * LN2_HIGH) - n * LN2_LOW;
  float series = 1.0f / 5040.0f;
  series = series * r + 1.0f / 720.0f;
  series = series * r + 1.0f / 120.0f;
  series = series * r + 1.0f / 24.0f;
  series = series * r + 1.0f / 6.0f;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  // In unsigned arithmetic: for NaN the bits are arbitrary, and must be free to wrap.
  const uint32_t power = (bits_of_float(shifted) - bits_of_float(ROUNDER) + 127u) << 23;
  return series * float_of_bits(power);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// 1 - Phi(x) for x >= 0, Phi the normal distribution: e^(-x^2 / 2) times a polynomial in t = 1 / (1 + 0.3 x), fitted
// by us to 5e-8 of itself.
inline float normal_tail(float x) {
  constexpr float FIT[] = {0.119605044f,   0.121111149f, 0.0977563583f, 0.135495595f,
                           -0.0665230819f, 0.220083934f, -0.165076875f, 0.0375479010f};
  const float t = 1.0f / (1.0f + 0.3f * x);
  float series = FIT[7];
  for (int i = 6; i >= 0; --i) series = series * t + FIT[i];
  return exponential(-0.5f * x * x) * (series * t);
}

struct Silu {
  static float of(float x) { return x * sigmoid(x); }
};

struct QuickGelu {
  static float of(float x) { return x * sigmoid(1.702f * x); }
};

// 1 + tanh(u) = 2 sigmoid(2 u).
struct GeluTanh {
  static float of(float x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }
};

struct Gelu {
  static float of(float x) {
    const float tail = normal_tail(x < 0.0f ? -x : x);
    return x * (x < 0.0f ? tail : 1.0f - tail);
  }
};

struct Relu {
  static float of(float x) { return x < 0.0f ? 0.0f : x; }
};

struct Relu2 {
  static float of(float x) { return x < 0.0f ? 0.0f : x * x; }
};

template <typename Function>
void activate_with(const float* gate, float* up, int64_t count) {
  if (gate == nullptr) {
    for (int64_t i = 0; i < count; ++i) up[i] = Function::of(up[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) up[i] = Function::of(gate[i]) * up[i];
  }
}

void activate(Activation kind, const float* gate, float* up, int64_t count) {
  using Rows = void (*)(const float*, float*, int64_t);
  static constexpr Rows kinds[ACTIVATIONS] = {activate_with<Silu>, activate_with<Gelu>,  activate_with<GeluTanh>,
                                              activate_with<Relu>, activate_with<Relu2>, activate_with<QuickGelu>};
  kinds[kind](gate, up, count);
}

}  // namespace
}  // namespace mote
