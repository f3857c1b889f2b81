// Four elements that follow each other, as a lane reads and writes them: words of memory, and the floats they stand
// for.
#pragma once

#include <type_traits>

#include "core/norm_tree.h"
#include "core/random_bits.h"
#include "core/storage.h"
#include "cuda/ptx.cuh"

namespace bertadam::cuda {

// The first of a lane's four in a row of a leaf, which the lanes share out.
__device__ __forceinline__ int first_of(int row) { return row * kLeafAccumulators + 4 * lane_id(); }

using Words = uint32_t[4];  // elements of two bytes leave half of them unused

template <class Element>
__device__ __forceinline__ Element element_of(const uint32_t* words, int i) {
  if constexpr (std::is_same_v<Element, float>) {
    return float_from_bits(words[i]);
  } else {
    const auto bits = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
    if constexpr (std::is_same_v<Element, int16_t>) {
      return static_cast<int16_t>(bits);
    } else {
      return Element{bits};
    }
  }
}

__device__ __forceinline__ uint32_t bits_of(BFloat16 x) { return x.bits; }
__device__ __forceinline__ uint32_t bits_of(Float16 x) { return x.bits; }
__device__ __forceinline__ uint32_t bits_of(int16_t x) { return static_cast<uint16_t>(x); }

template <class Element>
__device__ __forceinline__ void load_four(uint32_t* words, const Element* address) {
  if constexpr (sizeof(Element) == 4) {
    load_words(reinterpret_cast<uint32_t (&)[4]>(*words), address);
  } else {
    load_words(reinterpret_cast<uint32_t (&)[2]>(*words), address);
  }
}

template <class Element>
__device__ __forceinline__ void load_four_from_slot(float (&x)[4], const Element* address) {
  alignas(16) Words words;
  if constexpr (sizeof(Element) == 4) {
    *reinterpret_cast<uint4*>(words) = *reinterpret_cast<const uint4*>(address);
  } else {
    *reinterpret_cast<uint2*>(words) = *reinterpret_cast<const uint2*>(address);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = to_float(element_of<Element>(words, i));
}

__device__ __forceinline__ void store_four_to_slot(float* address, const float (&x)[4]) {
  *reinterpret_cast<uint4*>(address) = {float_bits(x[0]), float_bits(x[1]), float_bits(x[2]), float_bits(x[3])};
}

template <class Element>
__device__ __forceinline__ void store_four(Element* address, const Element (&x)[4]) {
  if constexpr (std::is_same_v<Element, float>) {
    store_words(address, x);
  } else {
    store_words(address, {bits_of(x[0]) | bits_of(x[1]) << 16, bits_of(x[2]) | bits_of(x[3]) << 16});
  }
}

// The random bits of four elements, the first of which has a multiple of four for its index.
struct FourBits {
  uint32_t words[2];

  __device__ FourBits(const RandomBits& bits, uint64_t index) {
    static_assert(kElementsPerCall == 8, "half of a call");
    const PhiloxWords drawn = bits.of_call(index / 8);
    const bool upper = index % 8 != 0;
    words[0] = upper ? drawn.x[2] : drawn.x[0];
    words[1] = upper ? drawn.x[3] : drawn.x[1];
  }
  __device__ uint32_t operator[](int i) const {
    return bits_of_element({{i < 2 ? words[0] : words[1], 0, 0, 0}}, i % 2);  // no index that registers do not have
  }
};

// Four parameters of a storage. What `Storage::load` does not use is not read.
template <class Storage>
class FourParams {
 public:
  using Param = typename Storage::Param;
  using Master = typename Storage::Master;

  __device__ __forceinline__ static void load(Words& words, const void* param, const void* master, int i) {
    if constexpr (kReadsParam) load_four(words, static_cast<const Param*>(param) + i);
    if constexpr (Storage::kHasMaster) load_four(words + kMasterWord, static_cast<const Master*>(master) + i);
  }

  __device__ __forceinline__ static float value(const Words& words, int i) {
    Param param{};
    Master master{};
    if constexpr (kReadsParam) param = element_of<Param>(words, i);
    if constexpr (Storage::kHasMaster) master = element_of<Master>(words + kMasterWord, i);
    return Storage::load(param, master);
  }

  // `bits(i)`: the random bits of element i, of a storage that takes some.
  template <class Bits>
  __device__ __forceinline__ static void store(void* param, void* master, int i, const float (&x)[4], Bits bits) {
    Param params[4];
    Master masters[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t drawn = 0;
      if constexpr (Storage::kIsRandom) drawn = bits[j];
      params[j] = Storage::store(x[j], masters[j], drawn);
    }
    store_four(static_cast<Param*>(param) + i, params);
    if constexpr (Storage::kHasMaster) store_four(static_cast<Master*>(master) + i, masters);
  }

 private:
  static constexpr bool kReadsParam = !std::is_same_v<Master, float>;
  static constexpr int kMasterWord = kReadsParam ? 2 : 0;
};

}  // namespace bertadam::cuda
