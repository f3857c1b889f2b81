// The version counters of tensors that a step writes. TensorImpl::bump_version counts with a locked instruction: 9.8 us
// for the 1,592 tensors of 398 parameters, against 2.2 us for a load and a store (Xeon, 2026-11). Nobody else counts
// at the same time: a step holds the GIL here, and who writes a tensor that is being stepped without it has a race on
// the memory itself.
#pragma once

#include <c10/core/TensorImpl.h>

#include <atomic>

namespace bertadam::binding {

std::atomic<uint32_t>& counter_of(const c10::VariableVersion& version);

// VariableVersion has no way to its counter but through locked instructions; an explicit instantiation may name a
// private member.
template <auto Counter>
struct VersionAccess {
  friend std::atomic<uint32_t>& counter_of(const c10::VariableVersion& version) { return (version.*Counter)->version_; }
};
template struct VersionAccess<&c10::VariableVersion::version_counter_>;

inline std::atomic<uint32_t>* version_of(const c10::TensorImpl& tensor) {
  return &counter_of(tensor.version_counter());
}

inline void bump(std::atomic<uint32_t>* version) {
  version->store(version->load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

}  // namespace bertadam::binding
