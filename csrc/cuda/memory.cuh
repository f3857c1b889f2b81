// A double that one block hands to another through global memory.
#pragma once

#include "core/step_args.h"
#include "cuda/ptx.cuh"

namespace bertadam::cuda {

// In two words with the epoch in each. An ordered arrival instead would wait for the block's other stores and empty its
// L1.
struct TaggedDouble {
  WordPair pair;

  __device__ static TaggedDouble of(double x, uint32_t epoch) {
    const auto bits = static_cast<uint64_t>(__double_as_longlong(x));
    return {{{tag(epoch, static_cast<uint32_t>(bits)), tag(epoch, static_cast<uint32_t>(bits >> 32))}}};
  }
  __device__ static TaggedDouble load(const TaggedDouble* address) { return {load_relaxed(&address->pair)}; }
  __device__ void store(TaggedDouble* address) const { store_relaxed(&address->pair, pair); }
  __device__ bool is_of(uint32_t epoch) const {
    return has_epoch(pair.words[0], epoch) && has_epoch(pair.words[1], epoch);
  }
  __device__ double value() const {
    return __longlong_as_double(
        static_cast<long long>(uint64_t{payload(pair.words[1])} << 32 | payload(pair.words[0])));
  }
};

}  // namespace bertadam::cuda
