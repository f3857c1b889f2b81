// Storage types and their exact conversions to and from float, the same bits on host and device.
// Rounding is to nearest, ties to even; denormals are kept; a NaN stays a NaN (its payload is not promised).
// Cases are chosen between, not branched to: compilers vectorise that. A GPU has an instruction for each.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/portable.h"

#if BERTADAM_FOR_GPU
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace bertadam {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

BERTADAM_HD uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

BERTADAM_HD float float_from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

BERTADAM_HD float to_float(float x) { return x; }

BERTADAM_HD float to_float(BFloat16 x) { return float_from_bits(uint32_t{x.bits} << 16); }

BERTADAM_HD float to_float(Float16 x) {
#if BERTADAM_FOR_GPU
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + 0x38000000u;  // the exponent's bias is 15 in the one, 127 in the other
  // Exact. Scaling the fields read as a float's does as well, but those are denormal floats, which take an Intel core
  // 150 cycles a vector: a step with float16 gradients took three times as long (Xeon, 2026-11).
  const uint32_t denormal = float_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t special = 0x7f800000u | (magnitude << 13);  // infinity or NaN
  const uint32_t finite = magnitude < 0x400u ? denormal : normal;
  return float_from_bits(sign | (magnitude >= 0x7c00u ? special : finite));
#endif
}

template <class Storage>
BERTADAM_HD Storage from_float(float x);

template <>
BERTADAM_HD float from_float<float>(float x) {
  return x;
}

template <>
BERTADAM_HD BFloat16 from_float<BFloat16>(float x) {
#if BERTADAM_FOR_GPU
  return BFloat16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  const uint32_t bits = float_bits(x);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return BFloat16{static_cast<uint16_t>((x != x ? bits | 0x400000u : rounded) >> 16)};
#endif
}

template <>
BERTADAM_HD Float16 from_float<Float16>(float x) {
#if BERTADAM_FOR_GPU
  return Float16{__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t sign = (float_bits(x) >> 16) & 0x8000u;
  const uint32_t magnitude = float_bits(x) & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the half's step is 2^-24, which is float's step at 0.5: the addition rounds correctly.
  const uint32_t denormal = float_bits(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? denormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  // From 0x477ff000 on it rounds to 65536 or more.
  return Float16{static_cast<uint16_t>(sign | (magnitude >= 0x477ff000u ? special : finite))};
#endif
}

}  // namespace bertadam
