// Tensors of any storage, aligned or not, filled at random.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "core/step_args.h"
#include "cuda/types.cuh"

namespace bertadam {

using Random = std::mt19937_64;

inline uint32_t below(Random& random, uint32_t n) { return static_cast<uint32_t>(random() % n); }

// Bytes of an element of the parameter, the master and the gradient.
struct Sizes {
  size_t param = 0, master = 0, grad = 0;

  explicit Sizes(uint32_t code) {
    cuda::AnyRow::with_storage(code, [this](auto storage) {
      using Storage = decltype(storage);
      param = sizeof(typename Storage::Param);
      if constexpr (Storage::kHasMaster) master = sizeof(typename Storage::Master);
    });
    cuda::AnyRow::with_grad(code, [this](auto grad_element) { grad = sizeof(grad_element); });
  }
};

// Memory that may begin anywhere an element may.
class Array {
 public:
  Array() = default;
  Array(size_t n, size_t element, bool aligned) : bytes_(n * element + 64), size_(n * element) {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    begin_ = (16 - address % 16) % 16 + (aligned ? 0 : element);
  }
  Array(const Array& other) : Array(other.size_, 1, true) { std::memcpy(data(), other.data(), size_); }
  Array& operator=(Array&&) = default;
  Array(Array&&) = default;

  void* data() const { return const_cast<unsigned char*>(bytes_.data()) + begin_; }
  size_t size() const { return size_; }
  bool operator==(const Array& other) const {
    return size_ == other.size_ && std::memcmp(data(), other.data(), size_) == 0;
  }

 private:
  std::vector<unsigned char> bytes_;
  size_t begin_ = 0, size_ = 0;
};

inline void fill(const Array& array, size_t element, bool is_float32, Random& random, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  if (is_float32) {
    for (size_t i = 0; i < array.size() / 4; ++i) static_cast<float*>(array.data())[i] = normal(random);
  } else if (element == 2) {  // any bits but infinities and NaN of either format: bit 14 is of the exponent
    for (size_t i = 0; i < array.size() / 2; ++i) {
      static_cast<uint16_t*>(array.data())[i] = static_cast<uint16_t>(random()) & 0xbfffu;
    }
  }
}

// One tensor of one of the two optimizers.
struct Tensor {
  Array param, master, states[kMaxStates];
  float step = 0.0f;

  TensorRow row(uint32_t code, uint32_t ordinal) {
    return {param.data(),
            master.size() > 0 ? master.data() : nullptr,
            {states[0].data(), states[1].data(), states[2].data()},
            &step,
            nullptr,
            nullptr,
            code,
            ordinal};
  }
};

}  // namespace bertadam
