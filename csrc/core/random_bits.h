// Which random bits an element's store takes: a pure function of the seed, the parameter's place in param_groups, its
// step and the element's place in the parameter's memory. So they are the same for any number of workers, any shape of
// work and any device, and a resumed run draws what it would have drawn.
#pragma once

#include <cstdint>

#include "core/philox.h"
#include "core/portable.h"

namespace bertadam {

// One call of the generator serves this many elements that follow each other, 16 bits for each.
constexpr int kElementsPerCall = 8;

struct RandomBits {
  uint64_t seed;
  uint32_t ordinal;  // of the parameter, over all groups and devices
  uint32_t step;     // before this update

  // Of elements [kElementsPerCall * call, kElementsPerCall * (call + 1)).
  BERTADAM_HD PhiloxWords of_call(uint64_t call) const {
    const PhiloxWords counter{{static_cast<uint32_t>(call), static_cast<uint32_t>(call >> 32), ordinal, step}};
    return philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  }
};

// The 16 bits of the call's element `i`: two elements share a word, the first has its lower half.
BERTADAM_HD uint32_t bits_of_element(const PhiloxWords& words, int i) {
  return (words.x[i / 2] >> (16 * (i % 2))) & 0xffffu;
}

}  // namespace bertadam
