// How a parameter is kept in memory: what is read before the mathematics, and what is written after it. One element,
// values only: who calls knows the memory. A storage has
//   Param, Master   the types of its two arrays; NoMaster where there is only the parameter
//   kHasMaster      whether there is one
//   kIsRandom       whether a store takes random bits (random_bits.h)
//   load            the float that the rule computes with
//   store           the parameter for a float; writes the master
#pragma once

#include <cstdint>

#include "core/dtypes.h"
#include "core/portable.h"

namespace bertadam {

struct NoMaster {};

// The parameter alone, rounded to nearest even.
template <class ParamT>
struct Plain {
  using Param = ParamT;
  using Master = NoMaster;
  static constexpr bool kHasMaster = false;
  static constexpr bool kIsRandom = false;

  BERTADAM_HD static float load(Param param, Master) { return to_float(param); }
  BERTADAM_HD static Param store(float x, Master&, uint32_t) { return from_float<Param>(x); }
};

// A float beside the parameter, which is rounded from it to nearest even. The master alone is read.
template <class ParamT>
struct WithMaster {
  using Param = ParamT;
  using Master = float;
  static constexpr bool kHasMaster = true;
  static constexpr bool kIsRandom = false;

  BERTADAM_HD static float load(Param, Master master) { return master; }
  BERTADAM_HD static Param store(float x, Master& master, uint32_t) {
    master = x;
    return from_float<Param>(x);
  }
};

// The exact float in the parameter and 16 bits more. The parameter is the float rounded to nearest, ties away from
// zero: then the signed difference of the bits fits in 16, as it does not on a tie rounded to even.
struct WithRemainder {
  using Param = BFloat16;
  using Master = int16_t;
  static constexpr bool kHasMaster = true;
  static constexpr bool kIsRandom = false;

  BERTADAM_HD static float load(Param param, Master remainder) {
    return float_from_bits((uint32_t{param.bits} << 16) + static_cast<uint32_t>(int32_t{remainder}));
  }
  BERTADAM_HD static Param store(float x, Master& remainder, uint32_t) {
    // One NaN for all: rounding up could carry another into the sign and leave a zero.
    const uint32_t bits = x != x ? 0x7fc00000u : float_bits(x);
    remainder = static_cast<int16_t>(static_cast<uint16_t>(bits));
    return BFloat16{static_cast<uint16_t>((bits + 0x8000u) >> 16)};
  }
};

// The parameter alone, rounded up in magnitude with the probability that makes its expectation the float: the part
// below its last place, of 16 bits, against 16 random bits. A value that fits is kept.
struct Stochastic {
  using Param = BFloat16;
  using Master = NoMaster;
  static constexpr bool kHasMaster = false;
  static constexpr bool kIsRandom = true;

  BERTADAM_HD static float load(Param param, Master) { return to_float(param); }
  BERTADAM_HD static Param store(float x, Master&, uint32_t random_bits) {
    const uint32_t bits = x != x ? 0x7fc00000u : float_bits(x) + random_bits;
    return BFloat16{static_cast<uint16_t>(bits >> 16)};
  }
};

}  // namespace bertadam
