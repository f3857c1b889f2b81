// What nearly every tensor of a step is: strided, of the expected dtype, on the plan's device, of its parameter's
// layout, in memory that is there. To see that takes some 50 instructions, and a step looks at two thousand tensors;
// whatever is not ordinary is left to the checks, which know words. Nothing of a tensor is remembered: all is read at
// every step. (To load the objects of later parameters early, by software prefetch, gained at most 0.7 of 17 us: Xeon,
// 2026-11.)
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/SmallVector.h>

namespace bertadam::binding {

// Sizes and strides, in place for up to five dimensions.
class Layout {
 public:
  explicit Layout(const at::Tensor& tensor) {
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      extents_.push_back(tensor.size(d));
      extents_.push_back(tensor.stride(d));
    }
  }
  C10_ALWAYS_INLINE bool matches(at::IntArrayRef sizes, at::IntArrayRef strides) const {
    if (2 * sizes.size() != extents_.size()) return false;
    const int64_t* extent = extents_.data();
    for (size_t d = 0; d < sizes.size(); ++d, extent += 2) {
      if (sizes[d] != extent[0] || strides[d] != extent[1]) return false;
    }
    return true;
  }

 private:
  c10::SmallVector<int64_t, 10> extents_;  // size and stride of each dimension
};

struct ElementType {
  caffe2::TypeMeta dtype;
  size_t bytes = 0;
};

template <class Element>
ElementType element_type() {
  return {caffe2::TypeMeta::Make<Element>(), sizeof(Element)};
}

class Ordinary {
 public:
  explicit Ordinary(at::Device device) : device_(device) {
    const c10::InferenceMode off(false);  // tensors for inference have other keys
    keys_ = at::empty({0}, at::TensorOptions().device(device)).key_set();
  }

  // Each returns the address of the first element, or null where the tensor is not ordinary or has no element.
  C10_ALWAYS_INLINE const void* to_read(const c10::TensorImpl& tensor, const Layout& layout,
                                        const ElementType& type) const {
    if (!is_plain(tensor, type) || !layout.matches(tensor.sizes_default(), tensor.strides_default())) return nullptr;
    return has_memory(tensor, type) ? at_offset<const char>(tensor, type, storage_of(tensor).data()) : nullptr;
  }
  // Memory that a lazy copy shares is separated.
  C10_ALWAYS_INLINE void* to_write(const c10::TensorImpl& tensor, const Layout& layout, const ElementType& type) const {
    if (!is_plain(tensor, type) || !layout.matches(tensor.sizes_default(), tensor.strides_default())) return nullptr;
    return has_memory(tensor, type) ? at_offset<char>(tensor, type, storage_of(tensor).mutable_data()) : nullptr;
  }
  C10_ALWAYS_INLINE void* state(const c10::TensorImpl& tensor, const Layout& layout) const {
    return to_write(tensor, layout, float_);
  }
  C10_ALWAYS_INLINE float* counter(const c10::TensorImpl& tensor) const {
    if (!is_plain(tensor, float_) || tensor.dim_default() != 0 || !has_memory(tensor, float_)) return nullptr;
    return reinterpret_cast<float*>(at_offset<char>(tensor, float_, storage_of(tensor).mutable_data()));
  }

 private:
  // The keys tell layout, kind of device, lazy negation, subclasses, wrappers and inference. No tensor of these keys
  // is without a storage, or computes its sizes: hence the accessors that do not ask.
  C10_ALWAYS_INLINE bool is_plain(const c10::TensorImpl& tensor, const ElementType& type) const {
    return tensor.key_set() == keys_ && tensor.dtype() == type.dtype && tensor.device() == device_;
  }
  // A freed or shrunk storage has too few bytes, while the tensor's sizes stay. The layout has no gaps.
  C10_ALWAYS_INLINE static bool has_memory(const c10::TensorImpl& tensor, const ElementType& type) {
    const auto end = static_cast<size_t>(tensor.storage_offset_default() + tensor.numel_default());
    return storage_of(tensor).nbytes() >= end * type.bytes;
  }
  C10_ALWAYS_INLINE static c10::StorageImpl& storage_of(const c10::TensorImpl& tensor) {
    return *tensor.unsafe_storage().unsafeGetStorageImpl();
  }
  template <class Byte, class Data>
  C10_ALWAYS_INLINE static Byte* at_offset(const c10::TensorImpl& tensor, const ElementType& type, Data* data) {
    const auto offset = static_cast<size_t>(tensor.storage_offset_default()) * type.bytes;
    return data == nullptr ? nullptr : static_cast<Byte*>(data) + offset;
  }

  at::Device device_;
  ElementType float_ = element_type<float>();
  c10::DispatchKeySet keys_;
};

}  // namespace bertadam::binding
