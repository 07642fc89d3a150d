// Activations in the order of a kernel's codes, and which groups its lanes belong to.
#pragma once
#include <vector>

#include "integer.h"

namespace mote {

// Float activations as a call gives them: [tokens, columns] of `type`, to be multiplied by `factors` [columns] (of
// `factor_type`) first, unless that is null.
struct FloatInput {
  const void* values;
  MoteType type;
  int64_t tokens;
  const void* factors;
  MoteType factor_type;
};

// Owns what `view` points to.
struct ArrangedActivations {
  std::vector<uint8_t> planes;
  std::vector<float> lane_sums;
  std::vector<int32_t> first_group, lane_group;
  IntegerActivations view;
};

// Throws std::bad_alloc.
ArrangedActivations arrange(const FloatInput& x, const IntegerWeight& weight, const IntegerTier& tier);

}  // namespace mote
