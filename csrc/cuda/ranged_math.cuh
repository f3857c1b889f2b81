// Correctly rounded square root and division without a branch, for arguments of moderate size.
//
// The compiler's own versions are these sequences behind a test and a call for the rest, one branch per operation, so
// that no two elements are worked on at once. Here the test is remembered, and the caller redoes what failed it with
// core/rules/math.h. The square root takes all normal numbers from 2^-101 up, and zero; the quotient is exact where
// neither it nor a remainder can leave the normal range. Both start from the hardware's approximations, whose operands
// are normal here: `.ftz` flushes nothing, it avoids a test for denormals.
//
// The root is right because it is the compiler's, instruction by instruction and with the same range (sm_80 to sm_120,
// CUDA 13.0): from an approximation that is one unit off where the hardware's is not, 3 of 12 million come out wrong.
// The quotient bears two units: none of 60 million was wrong (emulated on a CPU, 2026-11).
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace bertadam::cuda {

class RangedMath {
 public:
  // Whether every result so far is that of IeeeMath.
  __device__ bool exact() const { return out_of_range_ == 0; }

  __device__ __forceinline__ float square_root(float x) {
    const uint32_t bits = __float_as_uint(x);
    out_of_range_ |= is_outside(bits, 0x0d000000u, 0x7f7fffffu) & is_nonzero(bits);
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    const float root = x * y;
    return unless_zero(bits, fmaf(fmaf(-root, root, x), 0.5f * y, root));
  }

  __device__ __forceinline__ float divide(float numerator, float denominator) {
    const uint32_t magnitude = __float_as_uint(numerator) & 0x7fffffffu;
    constexpr uint32_t kTwoToMinus100 = 0x0d800000u, kTwoTo60 = 0x5d800000u;
    constexpr uint32_t kTwoToMinus40 = 0x2b800000u, kTwoTo25 = 0x4c000000u;
    out_of_range_ |= (is_outside(magnitude, kTwoToMinus100, kTwoTo60) |
                      is_outside(__float_as_uint(denominator), kTwoToMinus40, kTwoTo25)) &
                     is_nonzero(magnitude);
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(denominator));
    r = fmaf(r, fmaf(-denominator, r, 1.0f), r);
    const float quotient = numerator * r;
    return unless_zero(magnitude, fmaf(r, fmaf(-denominator, quotient, numerator), quotient));
  }

 private:
  // As numbers and masks: of conditions and choices the compiler makes branches again.
  __device__ static uint32_t is_outside(uint32_t bits, uint32_t low, uint32_t high) { return bits - low > high - low; }
  __device__ static uint32_t is_nonzero(uint32_t bits) { return bits != 0; }
  __device__ static float unless_zero(uint32_t bits, float x) {
    return __uint_as_float(__float_as_uint(x) & (0u - is_nonzero(bits)));
  }

  uint32_t out_of_range_ = 0;
};

}  // namespace bertadam::cuda
