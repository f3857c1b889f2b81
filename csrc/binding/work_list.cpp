#include "binding/work_list.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

namespace bertadam::binding {
namespace {

size_t padded(size_t bytes) { return (bytes + 127) / 128 * 128; }

}  // namespace

WorkList::WorkList(Plan plan, at::Device device, size_t n_coefficients)
    : plan_(std::move(plan)),
      device_(device),
      n_coefficients_(n_coefficients),
      items_(upload(plan_.items.data(), plan_.items.size() * sizeof(WorkItem))),
      tensors_(upload(plan_.tensors.data(), plan_.tensors.size() * sizeof(PlanTensor))),
      large_(upload(plan_.large.data(), plan_.large.size() * sizeof(uint32_t))) {}

at::Tensor WorkList::upload(const void* data, size_t bytes) const {
  const auto n = static_cast<int64_t>(bytes);
  const auto options = at::TensorOptions().dtype(at::kByte);
  return at::empty({n}, options.device(device_)).copy_(at::from_blob(const_cast<void*>(data), {n}, options));
}

void WorkList::describe(StepArgs& args) const {
  args.items = static_cast<const WorkItem*>(items_.const_data_ptr());
  args.tensors = static_cast<const PlanTensor*>(tensors_.const_data_ptr());
  args.large = static_cast<const uint32_t*>(large_.const_data_ptr());
  args.n_large = static_cast<uint32_t>(plan_.large.size());
  args.n_draws = static_cast<uint32_t>(n_draws());
  args.n_leading = static_cast<uint32_t>(plan_.n_leading);
  args.n_preparing = static_cast<uint32_t>(plan_.n_preparing);
  args.n_tensors = static_cast<uint32_t>(plan_.tensors.size());
  args.total_tree = plan_.n_nodes - tree_nodes(static_cast<int64_t>(plan_.tensors.size()));
  args.has_norms = plan_.has_norms;
  args.wait_for_all = plan_.waits_for_all;
}

ScratchLayout WorkList::scratch_layout() const {
  const size_t n_nodes = static_cast<size_t>(plan_.n_nodes);
  const size_t node_bytes = sizeof(double) * (device_.is_cuda() ? 2 : 1);
  ScratchLayout offsets{};
  offsets.nodes = padded(sizeof(Counters));
  offsets.arrivals = offsets.nodes + padded(n_nodes * node_bytes);
  offsets.coefficients = offsets.arrivals + padded(n_nodes * sizeof(uint32_t));
  offsets.postponed = offsets.coefficients + padded(n_coefficients_ * sizeof(uint64_t));
  const size_t n_surveyed = plan_.surveys ? n_nodes : 0;
  offsets.survey_nodes = offsets.postponed + padded(n_draws() * sizeof(uint64_t));
  offsets.survey_arrivals = offsets.survey_nodes + padded(n_surveyed * 2 * node_bytes);
  offsets.ratios = offsets.survey_arrivals + padded(n_surveyed * sizeof(uint32_t));
  offsets.end = offsets.ratios + padded((plan_.surveys ? plan_.tensors.size() : 0) * sizeof(uint64_t));
  return offsets;
}

Workspace WorkList::workspace_at(unsigned char* scratch) const {
  const ScratchLayout offsets = scratch_layout();
  return {reinterpret_cast<Counters*>(scratch),
          reinterpret_cast<double*>(scratch + offsets.nodes),
          reinterpret_cast<uint32_t*>(scratch + offsets.arrivals),
          reinterpret_cast<uint64_t*>(scratch + offsets.coefficients),
          reinterpret_cast<uint64_t*>(scratch + offsets.postponed),
          reinterpret_cast<double*>(scratch + offsets.survey_nodes),
          reinterpret_cast<uint32_t*>(scratch + offsets.survey_arrivals),
          reinterpret_cast<uint64_t*>(scratch + offsets.ratios)};
}

Scratch& WorkList::scratch_of(void* stream) {
  const auto found = scratch_.find(stream);
  if (found != scratch_.end()) return found->second;
  Scratch scratch;
  const auto n_bytes = static_cast<int64_t>(scratch_layout().end);
  scratch.memory = at::zeros({n_bytes}, at::TensorOptions().dtype(at::kByte).device(device_));
  scratch.workspace = workspace_at(static_cast<unsigned char*>(scratch.memory.mutable_data_ptr()));
  return scratch_.emplace(stream, std::move(scratch)).first->second;
}

}  // namespace bertadam::binding
