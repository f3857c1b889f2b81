// What captured steps refer to and the user does not hold. It outlives plans, which are made anew now and then: a graph
// may be replayed for as long as this is there. Only the optimizer knows when nobody replays any more, so nothing goes
// before.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <utility>
#include <vector>

namespace bertadam::binding {

class CapturedSteps {
 public:
  // `memory`: of a capture, of any type.
  void keep(std::shared_ptr<void> memory) { memory_.push_back(std::move(memory)); }
  void keep(const std::vector<at::Tensor>& tensors) {
    for (const at::Tensor& tensor : tensors) {
      if (tensor.defined()) tensors_.push_back(tensor);
    }
  }

  // One for each launch.
  size_t n_launches() const { return memory_.size(); }

 private:
  std::vector<at::Tensor> tensors_;
  std::vector<std::shared_ptr<void>> memory_;  // freed first, which waits for the device
};

}  // namespace bertadam::binding
