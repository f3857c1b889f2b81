// Four elements at a time: one 16-byte access where the address and the length allow it, narrow ones where not.
#pragma once

#include <cstdint>

#include "core/dtypes.h"

namespace bertadam::cuda {

template <class Storage>
__device__ __forceinline__ bool is_aligned(const Storage* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(Storage)) == 0;
}

// kWhole: all four elements exist and the address is aligned. Otherwise `n` of them exist; the others read as zero.
template <bool kWhole>
__device__ __forceinline__ void load4(float (&x)[4], const float* address, int n) {
  if constexpr (kWhole) {
    const float4 v = *reinterpret_cast<const float4*>(address);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = k < n ? address[k] : 0.0f;
  }
}

template <bool kWhole>
__device__ __forceinline__ void store4(float* address, const float (&x)[4], int n) {
  if constexpr (kWhole) {
    *reinterpret_cast<float4*>(address) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < n) address[k] = x[k];
    }
  }
}

}  // namespace bertadam::cuda
