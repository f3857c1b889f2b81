// Philox4x32-10: a counter-based generator. Four words of random bits from a counter and a key, with no state, so that
// any worker finds the bits of any element by itself.
// Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3 and table 2.
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace bertadam {

struct PhiloxWords {
  uint32_t x[4];
};

BERTADAM_HD PhiloxWords philox4x32(PhiloxWords counter, uint32_t key_0, uint32_t key_1) {
  constexpr int kRounds = 10;
  uint32_t x0 = counter.x[0], x1 = counter.x[1], x2 = counter.x[2], x3 = counter.x[3];
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product_0 = uint64_t{0xD2511F53u} * x0;
    const uint64_t product_1 = uint64_t{0xCD9E8D57u} * x2;
    x0 = static_cast<uint32_t>(product_1 >> 32) ^ x1 ^ key_0;
    x1 = static_cast<uint32_t>(product_1);
    x2 = static_cast<uint32_t>(product_0 >> 32) ^ x3 ^ key_1;
    x3 = static_cast<uint32_t>(product_0);
    key_0 += 0x9E3779B9u;  // the golden ratio
    key_1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return PhiloxWords{{x0, x1, x2, x3}};
}

}  // namespace bertadam
