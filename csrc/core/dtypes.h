// Storage types and their exact conversions to and from float, the same bits on host and device.
// Rounding is to nearest, ties to even; denormals are kept; a NaN stays a NaN (its payload is not promised).
#pragma once

#include <cstdint>
#include <cstring>

#include "core/portable.h"

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
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Reading the half's fields as a float's makes a value 2^112 too small; the product is exact, also for
  // half denormals, which are floats of full precision once scaled.
  const float scaled = float_from_bits(magnitude << 13) * 0x1p112f;
  return float_from_bits(sign | float_bits(scaled));
}

template <class Storage>
BERTADAM_HD Storage from_float(float x);

template <>
BERTADAM_HD float from_float<float>(float x) {
  return x;
}

template <>
BERTADAM_HD BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return BFloat16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return BFloat16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
BERTADAM_HD Float16 from_float<Float16>(float x) {
  const uint32_t bits = float_bits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return Float16{static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return Float16{static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the half's step is 2^-24, which is float's step at 0.5: the addition rounds correctly.
    const uint32_t rounded = float_bits(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    return Float16{static_cast<uint16_t>(sign | rounded)};
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return Float16{static_cast<uint16_t>(sign | (rounded >> 13))};
}

}  // namespace bertadam
